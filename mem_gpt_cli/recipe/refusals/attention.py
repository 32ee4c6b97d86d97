"""Which attention excludes what."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Recipe


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """Kernels that cannot run the recipe, and keys that the backend would ignore."""
    yield from _flash(recipe)
    yield from _lsh(recipe)


def _lsh(recipe: Recipe) -> Iterator[Refusal]:
    """Settings of hashing without hashing, or where one bucket leaves nothing to hash."""
    section = recipe.attention
    given = [key for key in ("rounds", "buckets", "chunk") if getattr(section, key) is not None]
    if section.backend != "lsh":
        for key in given:
            yield ("attention", key), f"belongs to lsh, and the backend is {section.backend}: leave it out"
        return
    if recipe.kv_cache.kind == "sliding":
        yield (
            ("attention", "backend"),
            "lsh finds keys by hashing, a window of the cache would have to mask them: choose sdpa or eager",
        )
    if section.buckets == 1:
        for key in given:
            if key != "buckets":
                yield ("attention", key), "with one bucket all tokens meet, none is hashed: leave it out"
    elif section.buckets is not None and section.buckets % 2:
        yield (
            ("attention", "buckets"),
            f"{section.buckets} is odd, but a hash tells a direction from its opposite: write an even number "
            "or 1 for full attention",
        )


def _flash(recipe: Recipe) -> Iterator[Refusal]:
    """Flash kernels of CUDA compute in half precision only, that of the CPU knows no dropout."""
    if recipe.attention.backend != "flash":
        return
    if recipe.device.type == "cuda" and recipe.model.dtype == "fp32" and recipe.workload.autocast == "none":
        yield (
            ("attention", "backend"),
            "'flash' has no fp32 kernel on CUDA: choose sdpa, or bf16 or fp16 as model.dtype or autocast",
        )
