"""What each generated token adds, with a key-value cache and without one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mem_gpt_cli.report.sizes import render_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 24


@dataclass(frozen=True)
class Token:
    """One new token: bytes that live after it, bytes of the cache among them, the peak of its step.

    ``ms`` is the time of its step; token 1 comes out of the prefill.
    """

    index: int
    live_bytes: int
    kv_cache_bytes: int
    peak_bytes: int
    ms: float | None


@dataclass(frozen=True)
class PerToken:
    """The same generation twice."""

    with_cache: tuple[Token, ...]
    without_cache: tuple[Token, ...]

    @property
    def cache_bytes_per_token(self) -> int | None:
        """What one more token adds to the cache; ``None`` where only one was generated."""
        return _growth([token.kv_cache_bytes for token in self.with_cache])

    def to_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {"cache_bytes_per_token": self.cache_bytes_per_token, **asdict(self)}


def _growth(counts: list[int]) -> int | None:
    """Bytes a token over all but the first."""
    return round((counts[-1] - counts[0]) / (len(counts) - 1)) if len(counts) > 1 else None


def table(tokens: PerToken) -> RenderableType:
    """Both runs side by side; of a long one every n-th token and the last."""
    from rich.table import Table

    count = len(tokens.with_cache)
    stride = -(-count // MOST_ROWS)
    shown = sorted({*range(0, count, stride), count - 1})
    grid = Table(
        box=None, header_style="bold", padding=(0, 1), caption=_caption(tokens), caption_justify="left"
    )
    for heading in (
        "token",
        "live\nwith cache",
        "cache",
        "step's peak",
        "ms",
        "live\nno cache",
        "step's peak",
        "ms",
    ):
        grid.add_column(heading, justify="right", no_wrap=True)
    for index in shown:
        cached, bare = tokens.with_cache[index], tokens.without_cache[index]
        grid.add_row(
            str(cached.index),
            render_bytes(cached.live_bytes),
            render_bytes(cached.kv_cache_bytes),
            render_bytes(cached.peak_bytes),
            _milliseconds(cached.ms),
            render_bytes(bare.live_bytes),
            render_bytes(bare.peak_bytes),
            _milliseconds(bare.ms),
        )
    return grid


def _milliseconds(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.1f}"


def _caption(tokens: PerToken) -> str | None:
    adds = tokens.cache_bytes_per_token
    recomputed = _growth([token.peak_bytes for token in tokens.without_cache[1:]])
    if adds is None:
        return None
    told = f"With the cache each token adds {adds:,} B that stay."
    if recomputed is None:
        return told
    return f"{told} Without, only the token stays: a step's peak grows by {recomputed:,} B a token."
