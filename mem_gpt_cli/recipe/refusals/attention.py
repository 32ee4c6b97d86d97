"""Which attention excludes what."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Recipe


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """Kernels that cannot run the recipe, and keys that the backend would ignore."""
    yield from _flash(recipe)


def _flash(recipe: Recipe) -> Iterator[Refusal]:
    """Flash kernels of CUDA compute in half precision only, that of the CPU knows no dropout."""
    if recipe.attention.backend != "flash":
        return
    if recipe.device.type == "cuda" and recipe.model.dtype == "fp32" and recipe.workload.autocast == "none":
        yield (
            ("attention", "backend"),
            "'flash' has no fp32 kernel on CUDA: choose sdpa, or bf16 or fp16 as model.dtype or autocast",
        )
