"""Which cache excludes what."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.refusals import Lens, Refusal, paged
from mem_gpt_cli.recipe.schema import Recipe


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """Caches that cannot serve the recipe, and keys that the cache would ignore."""
    yield from paged.refusals(recipe)
    if recipe.task == "training" and recipe.kv_cache.kind not in ("none", "dynamic"):
        yield ("kv_cache", "kind"), "belongs to inference, training keeps no KV cache: leave it out"
