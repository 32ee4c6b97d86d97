"""What a loss cannot be combined with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Recipe

_HAS_LINEAR_CROSS_ENTROPY = (2, 13)


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """The fused loss wants torch's own operator, and an output matrix in full."""
    if recipe.task != "training" or recipe.loss.kind != "fused":
        return
    version = _torch_version()
    if version is not None and version < _HAS_LINEAR_CROSS_ENTROPY:
        yield (
            ("loss", "kind"),
            f"'fused' is torch's linear_cross_entropy in chunks, which torch {version[0]}.{version[1]} has "
            "not: it came with 2.13; choose chunked",
        )


def _torch_version() -> tuple[int, int] | None:
    """Of the torch that is installed, which is not imported; ``None`` without one."""
    try:
        found = re.match(r"(\d+)\.(\d+)", metadata.version("torch"))
    except metadata.PackageNotFoundError:
        return None
    return (int(found[1]), int(found[2])) if found else None
