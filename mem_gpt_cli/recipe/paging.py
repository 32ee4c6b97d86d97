"""How many pages a recipe's requests need: ``kv_cache.kind: paged`` by sizes alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mem_gpt_cli.recipe.schema import KVCache, Recipe

PAGE_SIZE = 16
BATCH_TOKENS = 256
SMALLEST_PAGE = 4
"""transformers' own bound (``continuous_batching/initialization.py``, ``BOUNDS``)."""


@dataclass(frozen=True)
class Paging:
    """Requests of ``prompts`` tokens that each get ``new`` more, on pages of ``page_size`` tokens."""

    prompts: tuple[int, ...]
    new: int
    page_size: int
    batch_tokens: int

    @classmethod
    def of(cls, recipe: Recipe) -> Paging:
        """The paging of a recipe, defaults filled in."""
        return cls.over(recipe.kv_cache, recipe.prompts, recipe.lengths.new)

    @classmethod
    def over(cls, kv_cache: KVCache, prompts: Iterable[int], new: int) -> Paging:
        """The paging of requests that are not those of a recipe."""
        return cls(
            tuple(prompts), new, kv_cache.page_size or PAGE_SIZE, kv_cache.batch_tokens or BATCH_TOKENS
        )

    def stored(self, prompt: int) -> int:
        """Tokens of a request whose keys and values are kept: the last new token is never fed back."""
        return prompt + self.new - 1

    def pages(self, tokens: int) -> int:
        """Pages that hold so many tokens of one request."""
        return -(-tokens // self.page_size)

    @property
    def together(self) -> int:
        """Pages that hold all requests, each to its end, at once."""
        return sum(self.pages(self.stored(prompt)) for prompt in self.prompts)

    @property
    def largest(self) -> int:
        """Pages of the longest request; a pool that is smaller can never finish it."""
        return self.pages(self.stored(max(self.prompts)))

    @property
    def padded_tokens(self) -> int:
        """Tokens of a contiguous cache that pads every request to the longest."""
        return len(self.prompts) * self.stored(max(self.prompts))
