"""Measures what each generated token adds: the same generation with a key-value cache and without."""

from __future__ import annotations

from typing import Literal

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.profile.lens import passes_over, prepare
from mem_gpt_cli.profile.progress import Progress, Ticker
from mem_gpt_cli.recipe.schema import KVCache, Recipe
from mem_gpt_cli.report import COMPONENTS
from mem_gpt_cli.report.per_token import PerToken, Token

CACHE = COMPONENTS.index("kv_cache")


def per_token(recipe: Recipe, *, progress: Progress | None = None) -> PerToken:
    """Run the recipe with ``kv_cache.kind`` ``dynamic`` and ``none`` and follow each token.

    Raises:
        UsageError: for a training recipe.
        EnvironmentUnavailableError: if the device or the weights are not there.
    """
    if recipe.task != "inference":
        raise UsageError("--per-token follows a generation: use task=inference")
    kinds: tuple[Literal["dynamic", "none"], ...] = ("dynamic", "none")
    jobs = [
        prepare(recipe.model_copy(update={"kv_cache": KVCache(kind=kind)}).read_from(recipe.text))
        for kind in kinds
    ]
    ticker = Ticker(progress, sum(2 * job.steps for job in jobs))
    found: list[tuple[Token, ...]] = []
    for job in jobs:
        measured = passes_over(job, ticker, "both")
        assert measured.clean is not None
        account = measured.account
        laps = measured.clean.laps
        ends = account.at_span_ends()
        peaks = account.span_peaks()
        found.append(
            tuple(
                Token(
                    index=span,
                    live_bytes=int(account.live[ends[span]]),
                    kv_cache_bytes=int(account.by_component[ends[span], CACHE]),
                    peak_bytes=peaks[span].allocated_bytes,
                    ms=1000 * laps[span].seconds,
                )
                for span in range(1, len(account.log.spans))  # span 0 is the load
            )
        )
    return PerToken(*found)
