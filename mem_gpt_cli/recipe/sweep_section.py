"""The section that makes many recipes of one."""

# No `from __future__ import annotations`: pydantic would compile each annotation again, at every start.

from typing import Annotated, Any

from pydantic import Field

from mem_gpt_cli.recipe.section import Name, Section


class Claim(Section):
    """What is said of an option, to be printed beside what was measured; all against the cell's baseline."""

    name: Name = Field(description="Whose claim, or of what: a few words.")
    of: dict[str, Any] = Field(
        description="The cells that it speaks of: dotted keys of their recipes and the values there."
    )
    memory_saved_percent: Annotated[float, Field(gt=0, lt=100)] | None = Field(
        default=None, description="Least part of the baseline's peak that is saved."
    )
    speed_ratio: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Least tokens a second, as a multiple of the baseline's."
    )
    quality_lost_percent: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Most by which perplexity rises."
    )


class Sweep(Section):
    """Many recipes from one: every entry of ``cells`` crossed with the product of ``axes``, less ``exclude``.

    The order is that of the text: the first entry of ``cells`` with all of the product, then the second; in
    the product the first axis changes slowest. ``baseline`` says which cell the others are compared with.
    Cells that agree in every swept key that ``baseline`` does not name form a group, and each group has
    exactly one cell where all of ``baseline`` holds. A key that a cell does not give has the recipe's own
    value there.
    """

    axes: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="Dotted key to the values it takes, e.g. {workload.seq: [128, 256]}.",
    )
    cells: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Settings that belong together, as dotted keys; every entry is crossed with the axes.",
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, description="Cells to leave out: an entry matches where all of its keys do."
    )
    baseline: dict[str, Any] = Field(
        default_factory=dict,
        description="Values of the cell that relative columns compare with: one in each group of cells that "
        "agree in all other swept keys.",
    )
    claims: list[Claim] = Field(
        default_factory=list,
        description="Claims to hold against what is measured; each cell has one at most. Needs a baseline.",
    )
