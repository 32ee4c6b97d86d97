"""What a paged cache excludes."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.paging import SMALLEST_PAGE, Paging
from mem_gpt_cli.recipe.refusals import Refusal
from mem_gpt_cli.recipe.schema import Recipe


def refusals(recipe: Recipe) -> Iterator[Refusal]:
    """Combinations that continuous batching cannot run, and pools that cannot serve the requests."""
    if recipe.kv_cache.kind != "paged" or recipe.task == "training":
        return
    yield from _combinations(recipe)
    yield from _sizes(recipe)


def _combinations(recipe: Recipe) -> Iterator[Refusal]:
    backend = recipe.attention.backend
    if backend == "flash":
        yield (
            ("attention", "backend"),
            "paged requests share one row under a mask, which torch's flash kernel does not take: "
            "choose sdpa or eager",
        )
    if backend == "lsh":
        yield ("attention", "backend"), "'lsh' cannot read a paged cache: choose sdpa or eager"
    if recipe.workload.autocast != "none":
        yield (
            ("workload", "autocast"),
            "a paged cache has the model's own dtype: leave autocast out and set model.dtype",
        )
    if recipe.workload.logits == "all":
        yield ("workload", "logits"), "continuous batching computes the logits of last tokens alone: use last"


def _sizes(recipe: Recipe) -> Iterator[Refusal]:
    paging = Paging.of(recipe)
    if paging.page_size < SMALLEST_PAGE:
        yield ("kv_cache", "page_size"), f"pages have at least {SMALLEST_PAGE} tokens"
    pages = recipe.kv_cache.pages
    if pages is not None and pages < paging.largest:
        tokens = paging.stored(max(paging.prompts))
        yield (
            ("kv_cache", "pages"),
            f"the longest request keeps {tokens:,} tokens, {paging.largest} pages of {paging.page_size}; "
            f"a pool of {pages} can never finish it: give {paging.largest} or more "
            f"({paging.together} hold all requests at once)",
        )
