"""Segments of the driver's memory, the blocks that they are cut into, and the pools of free blocks.

From torch 2.11, ``c10/cuda/CUDACachingAllocator.cpp``: ``Block``, ``BlockPool``, ``BlockComparatorSize``.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

ADDRESS_BITS = 64


@dataclass(slots=True, eq=False)
class Segment:
    """A stretch of addresses: what one call to the driver gave, or the room of an expandable segment.

    ``page`` is the granularity at which an expandable segment is mapped; ``None`` for one mapped whole.
    """

    address: int
    nbytes: int
    page: int | None
    first: Block = field(init=False, repr=False)


@dataclass(slots=True, eq=False)
class Block:
    """A part of a segment: handed out, free, or (in an expandable segment) without memory behind it."""

    segment: Segment
    pool: Pool = field(repr=False)
    address: int
    nbytes: int
    requested: int = 0
    allocated: bool = False
    mapped: bool = True
    previous: Block | None = field(default=None, repr=False)
    next: Block | None = field(default=None, repr=False)
    freed_at: int = 0

    @property
    def is_split(self) -> bool:
        """Whether the block is a part of its segment only, so that the driver cannot take it back."""
        return self.previous is not None or self.next is not None

    def insert_after(self, before: Block | None, after: Block | None) -> None:
        """Become the block between two neighbours (``splice``)."""
        self.previous, self.next = before, after
        if before is None:
            self.segment.first = self
        else:
            before.next = self
        if after is not None:
            after.previous = self

    def absorb(self, neighbour: Block) -> None:
        """Take in a neighbouring block, which is no more (``try_merge_blocks``)."""
        if neighbour is self.previous:
            self.address = neighbour.address
            self.insert_after(neighbour.previous, self.next)
        else:
            self.insert_after(self.previous, neighbour.next)
        self.nbytes += neighbour.nbytes


class Pool:
    """The free blocks of one pool by size, then address, and the unmapped ones by address."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.searches = 0
        self.free: list[Block] = []
        self.unmapped: list[Block] = []
        self._sizes: list[int] = []
        self._addresses: list[int] = []

    def add(self, block: Block) -> None:
        """Put a free block in (``insert_into_blocks``)."""
        block.freed_at = self.searches
        key = block.nbytes << ADDRESS_BITS | block.address
        index = bisect_left(self._sizes, key)
        self._sizes.insert(index, key)
        self.free.insert(index, block)

    def remove(self, block: Block) -> None:
        """Take a free block out."""
        index = bisect_left(self._sizes, block.nbytes << ADDRESS_BITS | block.address)
        del self._sizes[index], self.free[index]

    def take(self, index: int) -> Block:
        """Take out the free block at an index."""
        del self._sizes[index]
        return self.free.pop(index)

    def smallest(self, nbytes: int) -> int:
        """The index in ``free`` of the smallest block of at least so many bytes; the lowest of equals."""
        return bisect_left(self._sizes, nbytes << ADDRESS_BITS)

    def add_unmapped(self, block: Block) -> None:
        """Put in a stretch of addresses without memory."""
        index = bisect_left(self._addresses, block.address)
        self._addresses.insert(index, block.address)
        self.unmapped.insert(index, block)

    def remove_unmapped(self, block: Block) -> None:
        """Take out a stretch of addresses without memory."""
        index = bisect_left(self._addresses, block.address)
        del self._addresses[index], self.unmapped[index]

    def age(self, block: Block) -> int:
        """How many searches of the pool a free block has seen (``gc_count``)."""
        return self.searches - block.freed_at
