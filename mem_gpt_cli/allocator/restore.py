"""An allocator put into a state that a snapshot shows."""

from __future__ import annotations

from collections.abc import Iterable

from mem_gpt_cli.allocator.block import Block, Segment
from mem_gpt_cli.allocator.caching import CachingAllocator
from mem_gpt_cli.allocator.snapshot import SegmentView


def restore(allocator: CachingAllocator, segments: Iterable[SegmentView]) -> dict[int, Block]:
    """Give an allocator segments that are mapped whole, with their blocks; returns the live ones by address.

    The driver is not asked: it counts these bytes as given already.
    """
    return {block.address: block for view in segments for block in _restored(allocator, view)}


def _restored(allocator: CachingAllocator, view: SegmentView) -> list[Block]:
    if view.expandable:
        raise ValueError(f"the segment at {view.address:#x} is expandable")
    pool = allocator.small if view.small else allocator.large
    segment = allocator.segments[view.address] = Segment(view.address, view.nbytes, page=None)
    allocator.stats.reserve(view.nbytes)
    allocator.stats.segments += 1
    before: Block | None = None
    blocks = []
    for part in view.blocks:
        block = Block(segment, pool, part.address, part.nbytes, part.requested, part.allocated)
        block.insert_after(before, None)
        before = block
        blocks.append(block)
    for block in blocks:
        if block.allocated:
            allocator.stats.allocate(block.nbytes, block.requested)
        else:
            pool.add(block)
            if block.is_split:
                allocator.stats.split(block.nbytes, 1)
    return [block for block in blocks if block.allocated]
