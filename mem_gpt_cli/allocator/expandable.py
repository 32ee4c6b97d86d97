"""Expandable segments: addresses reserved once, memory mapped behind them page by page.

From torch 2.11, ``c10/cuda/CUDACachingAllocator.cpp``: ``ExpandableSegment``, ``find_expandable_block``,
``map_block``, ``unmap_block``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mem_gpt_cli.allocator.block import Block, Pool, Segment
from mem_gpt_cli.allocator.sizes import SMALL_SEGMENT_BYTES, round_up

if TYPE_CHECKING:
    from mem_gpt_cli.allocator.caching import CachingAllocator

UNKNOWN_DEVICE_BYTES = 1 << 42
"""Stands for the memory of a device whose size nobody told: more than any device has."""


def room_for(allocator: CachingAllocator, pool: Pool, nbytes: int) -> Block:
    """The lowest free or unmapped block from which on ``nbytes`` are free or can be mapped."""
    for block in pool.unmapped:
        before = block.previous
        start = before if before is not None and not before.allocated else block
        if _free_from(start, nbytes) >= nbytes:
            return start
    return _reserve(allocator, pool)


def _free_from(block: Block | None, enough: int) -> int:
    nbytes = 0
    while nbytes < enough and block is not None and not block.allocated:
        nbytes += block.nbytes
        block = block.next
    return nbytes


def _reserve(allocator: CachingAllocator, pool: Pool) -> Block:
    """A new segment: addresses for 9/8 of the device's memory, none of them mapped."""
    page = SMALL_SEGMENT_BYTES if pool.small else allocator.settings.large_segment_bytes
    device = allocator.device_bytes or UNKNOWN_DEVICE_BYTES
    nbytes = round_up(device + device // 8, page)
    segment = Segment(allocator.driver.reserve(nbytes, page), nbytes, page)
    allocator.segments[segment.address] = segment
    segment.first = Block(segment, pool, segment.address, nbytes, mapped=False)
    pool.add_unmapped(segment.first)
    return segment.first


def map_block(allocator: CachingAllocator, block: Block, nbytes: int) -> bool:
    """Map the pages of an unmapped block's first ``nbytes`` and free them; whether the driver gave them."""
    page = block.segment.page
    assert page is not None
    mapped = round_up(nbytes, page)
    if not allocator.driver.map(block.address, mapped):
        return False
    block.pool.remove_unmapped(block)
    block.mapped = True
    if mapped < block.nbytes:
        rest = Block(block.segment, block.pool, block.address + mapped, block.nbytes - mapped, mapped=False)
        rest.insert_after(block, block.next)
        block.pool.add_unmapped(rest)
        block.nbytes = mapped
    _join(block)
    block.pool.add(block)
    allocator.stats.reserve(mapped)
    return True


def unmap_block(allocator: CachingAllocator, block: Block) -> None:
    """Give the pages that lie wholly in a free block back to the driver, and a segment without pages too."""
    segment, pool = block.segment, block.pool
    assert segment.page is not None
    start = round_up(block.address - segment.address, segment.page) + segment.address
    end = (block.address + block.nbytes - segment.address) // segment.page * segment.page + segment.address
    if start >= end:
        return
    allocator.driver.unmap(start, end - start)
    pool.remove(block)
    if start > block.address:
        head = Block(segment, pool, block.address, start - block.address)
        head.insert_after(block.previous, block)
        pool.add(head)
    if block.address + block.nbytes > end:
        tail = Block(segment, pool, end, block.address + block.nbytes - end)
        tail.insert_after(block, block.next)
        pool.add(tail)
    block.address, block.nbytes, block.mapped = start, end - start, False
    _join(block)
    pool.add_unmapped(block)
    allocator.stats.reserve(start - end)
    if not block.is_split:
        pool.remove_unmapped(block)
        del allocator.segments[segment.address]


def _join(block: Block) -> None:
    """Join a block with the free, or as it is itself unmapped, blocks beside it (``try_merge_blocks``)."""
    for neighbour in (block.previous, block.next):
        if neighbour is not None and not neighbour.allocated and neighbour.mapped == block.mapped:
            if neighbour.mapped:
                block.pool.remove(neighbour)
            else:
                block.pool.remove_unmapped(neighbour)
            block.absorb(neighbour)
