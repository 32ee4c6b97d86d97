"""What the allocator counts (``DeviceStats`` in ``c10/core/CachingDeviceAllocator.h``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """Bytes and counts now, and the highest of those that torch keeps peaks of.

    ``allocated`` is the sum of the blocks handed out (``torch.cuda.memory_allocated``), ``requested`` of what
    was asked for in them, ``reserved`` of the segments (``torch.cuda.memory_reserved``), ``inactive_split``
    of the free blocks that are parts of segments and so cannot go back (torch leaves expandable ones out).
    With one stream torch's ``active`` is its ``allocated``. ``retries`` counts the times that all cached
    segments were given back for one more try (``num_alloc_retries``).
    """

    allocated: int = 0
    requested: int = 0
    reserved: int = 0
    inactive_split: int = 0
    inactive_split_blocks: int = 0
    segments: int = 0
    retries: int = 0
    allocated_peak: int = 0
    requested_peak: int = 0
    reserved_peak: int = 0
    inactive_split_peak: int = 0

    def allocate(self, nbytes: int, requested: int) -> None:
        """A block is handed out."""
        self.allocated += nbytes
        self.requested += requested
        if self.allocated > self.allocated_peak:
            self.allocated_peak = self.allocated
        if self.requested > self.requested_peak:
            self.requested_peak = self.requested

    def free(self, nbytes: int, requested: int) -> None:
        """A block comes back."""
        self.allocated -= nbytes
        self.requested -= requested

    def reserve(self, nbytes: int) -> None:
        """The driver gave memory, or with a minus took it back."""
        self.reserved += nbytes
        if self.reserved > self.reserved_peak:
            self.reserved_peak = self.reserved

    def split(self, nbytes: int, blocks: int) -> None:
        """The free parts of segments became more, or with a minus less."""
        self.inactive_split += nbytes
        self.inactive_split_blocks += blocks
        if self.inactive_split > self.inactive_split_peak:
            self.inactive_split_peak = self.inactive_split
