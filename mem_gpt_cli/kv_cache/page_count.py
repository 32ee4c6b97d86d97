"""What became of the pages of a pool: allocated, in use, freed, used again, shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BlockTable = Mapping[str, Sequence[int]]
"""Each request's pages, in the order of its tokens."""


@dataclass
class PageCount:
    """Follows the block tables of a run, look by look.

    ``allocated`` counts every page that was handed out, ``freed`` every one that came back, ``reused`` those
    handed out that had been in use before; ``shared`` counts a page once more for each further request that
    got it. ``peak`` is the most that were in use at once, and ``peak_tokens`` the tokens stored then.
    """

    page_size: int
    allocated: int = 0
    freed: int = 0
    reused: int = 0
    shared: int = 0
    peak: int = 0
    peak_tokens: int = 0
    _slots: int = 0
    _tokens: int = 0
    _owners: Counter[int] = field(default_factory=Counter)
    _seen: set[int] = field(default_factory=set)

    def look(self, tables: BlockTable, stored: Mapping[str, int]) -> None:
        """Take note of who owns which page; ``stored`` are the tokens of each request."""
        owners = Counter(page for pages in tables.values() for page in pages)
        new, gone = owners.keys() - self._owners.keys(), self._owners.keys() - owners.keys()
        self.allocated += len(new)
        self.reused += len(new & self._seen)
        self.freed += len(gone)
        self.shared += sum(
            max(0, count - max(1, self._owners[page])) for page, count in owners.items() if count > 1
        )
        self._owners = owners
        self._seen |= new
        tokens = self._stored_tokens(tables, stored, owners)
        if len(owners) >= self.peak:
            self.peak, self.peak_tokens = len(owners), tokens
        self._slots += len(owners) * self.page_size
        self._tokens += tokens

    def _stored_tokens(self, tables: BlockTable, stored: Mapping[str, int], owners: Counter[int]) -> int:
        """Tokens in pages; those in a page that several requests share (it is full) count once."""
        twice = sum((count - 1) * self.page_size for count in owners.values())
        return sum(stored[request] for request in tables) - twice

    def report(self, page_bytes: int, pool_pages: int, padded_tokens: int) -> dict[str, Any]:
        """``details.pages``: counts, and bytes where the name says so.

        Waste is internal: slots of pages in use that no token fills, at the peak of use and, in percent, on
        average over all looks.
        """
        token = page_bytes // self.page_size
        slots = self.peak * self.page_size
        return {
            "page_size": self.page_size,
            "page_bytes": page_bytes,
            "pool_pages": pool_pages,
            "pool_bytes": pool_pages * page_bytes,
            "allocated": self.allocated,
            "peak_in_use": self.peak,
            "peak_in_use_bytes": self.peak * page_bytes,
            "freed": self.freed,
            "reused": self.reused,
            "shared": self.shared,
            "waste_bytes": (slots - self.peak_tokens) * token,
            "waste_percent": _percent(slots - self.peak_tokens, slots),
            "mean_waste_percent": _percent(self._slots - self._tokens, self._slots),
            "padded_bytes": padded_tokens * token,
        }


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 3) if whole else 0.0
