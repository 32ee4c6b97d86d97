"""Which ways of storing weights exclude each other."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Recipe


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """What no backend can store, and keys that the scheme would ignore."""
    if recipe.task == "training" and recipe.quantization.scheme != "none":
        yield (
            ("quantization", "scheme"),
            "quantized weights cannot be trained: write none, or task: inference",
        )
