"""How memory grows along one axis: the same estimate at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Literal

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.estimate.report import report_of
from mem_gpt_cli.quantization.saved import as_saved
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import MemoryReport

Axis = Literal["seq", "batch"]
Heights = Sequence[int]

LEAST_SEQ = 128
LEAST_BATCH = 1
DOUBLINGS = 6


def curve(recipe: Recipe, axis: Axis = "seq", points: Sequence[int] | None = None) -> dict[int, MemoryReport]:
    """The estimate of a recipe at several lengths (``seq``: tokens in all) or batch sizes (``batch``).

    Without ``points`` the axis is doubled from its least value, at least six times and up to the recipe's own
    size. In inference the number of new tokens stays and the prompt grows.

    Raises:
        UsageError: for points that are no sizes, or too short for the recipe's new tokens.
        RecipeError, UnsupportedError: as ``estimate``.
    """
    refuse_unavailable(recipe, "estimate")
    source = source_of(recipe)
    recipe = as_saved(recipe, source)
    values = sorted(set(points)) if points else _doubled(recipe, axis)
    if values[0] < 1:
        raise UsageError(f"a curve's points are sizes of at least 1, not {values[0]}")
    recipes = {value: _at(recipe, axis, value) for value in values}
    return {value: report_of(at, source, source.architecture) for value, at in recipes.items()}


def _doubled(recipe: Recipe, axis: Axis) -> list[int]:
    least = LEAST_SEQ if axis == "seq" else LEAST_BATCH
    own = recipe.lengths.seq if axis == "seq" else recipe.workload.batch
    most = max(own, least * 2**DOUBLINGS)
    values = list(takewhile(lambda value: value < most, (least * 2**power for power in range(64))))
    return [*values, most]


def _at(recipe: Recipe, axis: Axis, value: int) -> Recipe:
    if axis == "batch":
        change: dict[str, int | None] = {"batch": value}
    elif recipe.task == "training":
        change = {"seq": value}
    else:
        new = min(recipe.lengths.new, max(1, value // 2))
        if value < 2:
            raise UsageError("a generation has at least 2 tokens, one given and one new")
        change = {"seq": value, "prompt_tokens": value - new, "new_tokens": new}
    return recipe.model_copy(update={"workload": recipe.workload.model_copy(update=change)})


def part_heights(points: Mapping[int, MemoryReport]) -> dict[tuple[str, str], list[int]]:
    """The most that each part held in each phase, along the curve: (phase, part) to bytes at each point."""
    heights: dict[tuple[str, str], list[int]] = {}
    for index, report in enumerate(points.values()):
        for phase, parts in report.details["highest_by_part"].items():
            for part, nbytes in parts.items():
                heights.setdefault((phase, part), [0] * len(points))[index] = nbytes
    return heights
