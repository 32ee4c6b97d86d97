"""Garbage collection: whole cached segments go back before the driver is asked for more.

From torch 2.11, ``garbage_collect_cached_blocks`` in ``c10/cuda/CUDACachingAllocator.cpp``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mem_gpt_cli.allocator.caching import CachingAllocator


def collect_garbage(allocator: CachingAllocator) -> None:
    """Give back large cached segments of at least average age until the threshold is kept."""
    assert allocator.allowed is not None
    threshold = int(allocator.settings.garbage_collection_threshold * allocator.allowed)
    excess = allocator.stats.reserved - threshold
    pool = allocator.large
    whole = [block for block in pool.free if not block.is_split]
    total_age, count = sum(map(pool.age, whole)), len(whole)
    released = True
    while excess > 0 and released and count > 0:
        average = total_age / count
        released = False
        for block in [block for block in pool.free if not block.is_split and block.segment.page is None]:
            if pool.age(block) >= average:
                released = True
                excess -= block.nbytes
                total_age -= pool.age(block)
                count -= 1
                allocator.release(block)
