"""The pool of a paged cache and the tensors that grow with it, by sizes alone (no torch).

The layout is that of transformers 5.23, ``generation/continuous_batching``: one tensor holds the pages of all
layers (``cache.PagedAttentionCache``), and the inputs of a step have room for the largest one
(``input_outputs.ContinuousBatchingIOs``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, lcm

from mem_gpt_cli.kv_cache.paged_schedule import pages_needed, requests_at_once
from mem_gpt_cli.recipe.paging import Paging

ALIGNMENT = 128
"""Bytes that a sector, the unit that the pool is made of, is a multiple of."""
TRASH_SECTORS = 2
"""Sectors that padding reads and writes; no request ever gets them."""
_INT32, _INT64 = 4, 8
_INPUT_ROWS = 7
_INPUT_ALIGNMENT = 32


@dataclass(frozen=True)
class Pool:
    """What continuous batching is told.

    ``pages`` of ``page_size`` tokens; at most ``batch_tokens`` tokens of at most ``requests`` requests are
    computed at once. ``suffices``: no request ever has to wait for another's pages.
    """

    page_size: int
    pages: int
    batch_tokens: int
    requests: int
    suffices: bool

    @classmethod
    def of(cls, paging: Paging, pages: int | None) -> Pool:
        """The pool of some requests; without ``pages`` as many as they ever have in use at once."""
        needed = pages_needed(paging)
        pages = needed if pages is None else pages
        return cls(
            paging.page_size,
            pages,
            paging.batch_tokens,
            requests_at_once(paging),
            pages >= needed,
        )


@dataclass(frozen=True)
class PoolBytes:
    """The tensors that live as long as the pool; ``layers`` keep keys and values of ``kv_heads`` each."""

    pool: Pool
    layers: int
    kv_heads: int
    head_dim: int
    item: int

    @property
    def token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.item

    @property
    def page(self) -> int:
        """One page in all layers."""
        return self.token * self.pool.page_size

    @property
    def _sector(self) -> int:
        return lcm(self.page, ALIGNMENT)

    @property
    def _sectors(self) -> int:
        return max(1, ceil(self.pool.pages * self.page / self._sector))

    @property
    def cache(self) -> int:
        """The pool itself, whole sectors and the two that nobody gets."""
        return (self._sectors + TRASH_SECTORS) * self._sector

    @property
    def slots(self) -> int:
        """Tokens that requests can keep."""
        return self._sectors * self._sector // self.token

    @property
    def inputs(self) -> tuple[int, ...]:
        """Small inputs, sampled tokens, where to write and where to read, in the order of their making."""
        tokens = self.pool.batch_tokens
        columns = -(-(tokens + 1) // _INPUT_ALIGNMENT) * _INPUT_ALIGNMENT
        return (
            _INPUT_ROWS * columns * _INT32,
            (tokens + 1) * _INT32,
            tokens * _INT64,
            (self.slots + tokens) * _INT64,
        )

    @property
    def mask(self) -> int:
        """A step's mask: every token that may be computed by every token that may be read."""
        tokens = self.pool.batch_tokens
        return tokens * (self.slots + tokens) * self.item
