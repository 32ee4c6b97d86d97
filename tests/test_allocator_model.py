"""The caching allocator's behaviour as torch documents and tests it.

Facts, not code, of ``docs/source/notes/cuda.rst`` ("Memory management") and of the allocator's tests in
``test/test_cuda.py`` (``test_allocator_settings``, ``test_max_split_expandable``,
``test_garbage_collect_expandable``), and of the comments in ``c10/cuda/CUDACachingAllocator.cpp``.
"""

from __future__ import annotations

import numpy as np
import pytest

from mem_gpt_cli.allocator import AllocatorSettings, CachingAllocator, OutOfMemory, replay
from mem_gpt_cli.errors import UsageError

KIB, MIB = 1 << 10, 1 << 20


def parse(text: str) -> AllocatorSettings:
    return AllocatorSettings.parse(text)


@pytest.mark.parametrize(
    ("requested", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 512, 10 * MIB + 512, 12 * MIB),
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),
        (51 * MIB + 1, 52 * MIB, 52 * MIB),
        (51 * MIB - 1024, 51 * MIB - 1024, 52 * MIB),
    ],
)
def test_what_a_first_request_reserves(requested: int, block: int, segment: int) -> None:
    """A large block keeps a remainder of up to 1 MiB; ``memory_allocated`` counts it."""
    allocator = CachingAllocator()
    assert allocator.malloc(requested).nbytes == block
    assert allocator.stats.allocated == block
    assert allocator.stats.requested == requested
    assert allocator.stats.reserved == segment
    assert allocator.stats.inactive_split == segment - block


def steps_of_two(nbytes: int, divisions: int) -> int:
    """The size that ``test_allocator_settings`` expects of a rounded request."""
    above = 1 << (nbytes - 1).bit_length()
    step = above // 2 // divisions
    return next(size for size in range(above // 2, above + 1, step) if size >= nbytes)


@pytest.mark.parametrize(
    ("settings", "nbytes", "divisions"),
    [
        ("roundup_power2_divisions:4", 84 * MIB, 4),
        ("roundup_power2_divisions:[64:8,128:2,256:2,512:2,1024:1,>:1]", 84 * MIB, 8),
        ("roundup_power2_divisions:[64:8,128:2,256:2,512:2,1024:1,>:1]", 400 * MIB, 2),
    ],
)
def test_rounding_by_divisions(settings: str, nbytes: int, divisions: int) -> None:
    allocated = CachingAllocator(parse(settings)).malloc(nbytes).nbytes
    assert allocated == steps_of_two(nbytes, divisions)
    assert allocated > nbytes


def test_the_notes_example_of_rounding() -> None:
    """1200 with 4 divisions is 1280 in the notes; sizes up to 512 times the divisions are spared."""
    assert parse("roundup_power2_divisions:4").block_bytes(1200 * KIB) == 1280 * KIB
    assert parse("roundup_power2_divisions:4").block_bytes(1200) == 1536
    assert parse("roundup_power2_divisions:1").block_bytes(1200 * KIB + 1) == 1200 * KIB + 512


def test_the_smallest_block_that_fits_is_taken_and_the_lowest_of_equals() -> None:
    allocator = CachingAllocator()
    held = [allocator.malloc(nbytes * MIB) for nbytes in (40, 24, 32, 24)]
    for block in held:
        allocator.free(block)
    again = allocator.malloc(23 * MIB)
    assert (again.address, again.nbytes) == (held[1].address, 24 * MIB)
    assert allocator.malloc(24 * MIB).address == held[3].address
    assert allocator.stats.reserved == 120 * MIB


def test_freed_neighbours_become_one() -> None:
    allocator = CachingAllocator()
    first, second, third = (allocator.malloc(4 * MIB) for _ in range(3))
    allocator.free(first)
    allocator.free(third)
    assert allocator.stats.inactive_split == 16 * MIB
    allocator.free(second)
    assert allocator.stats.inactive_split == 0
    (segment,) = allocator.snapshot()
    assert [block.nbytes for block in segment.blocks] == [20 * MIB]


def test_a_segment_with_a_live_block_is_not_given_back() -> None:
    allocator = CachingAllocator()
    live, freed, alone = allocator.malloc(2 * MIB), allocator.malloc(3 * MIB), allocator.malloc(30 * MIB)
    allocator.free(freed)
    allocator.free(alone)
    allocator.empty_cache()
    assert allocator.stats.reserved == 20 * MIB
    allocator.free(live)
    allocator.empty_cache()
    assert allocator.stats.reserved == allocator.stats.segments == 0


def test_a_block_is_freed_once() -> None:
    allocator = CachingAllocator()
    block = allocator.malloc(1)
    allocator.free(block)
    with pytest.raises(ValueError, match="not allocated"):
        allocator.free(block)


def test_out_of_memory_first_gives_the_cache_back() -> None:
    allocator = CachingAllocator(capacity=100 * MIB)
    allocator.free(allocator.malloc(60 * MIB))
    kept = allocator.malloc(30 * MIB)
    assert allocator.stats.reserved == 60 * MIB, "the 60 MiB block is split: 30 remain, too few"
    with pytest.raises(OutOfMemory) as raised:
        allocator.malloc(50 * MIB)
    assert raised.value.allocated == 30 * MIB
    assert raised.value.reserved_but_unallocated == 30 * MIB
    assert (raised.value.requested, raised.value.capacity, raised.value.retries) == (50 * MIB, 100 * MIB, 1)
    allocator.free(kept)
    allocator.malloc(90 * MIB)
    assert allocator.stats.retries == 2


def test_blocks_above_the_splitting_limit_stay_whole_and_serve_only_their_like() -> None:
    """Oversize blocks serve requests within 20 MiB of their size (the comment on the allocator)."""
    allocator = CachingAllocator(parse("max_split_size_mb:40"))
    oversize = allocator.malloc(100 * MIB)
    allocator.free(oversize)
    assert allocator.malloc(30 * MIB).address != oversize.address, "a small request does not split it"
    assert allocator.malloc(60 * MIB).address != oversize.address, "40 MiB would be wasted"
    again = allocator.malloc(90 * MIB)
    assert (again.address, again.nbytes) == (oversize.address, 100 * MIB)


def test_where_the_splitting_limit_begins_and_its_waste_ends() -> None:
    allocator = CachingAllocator(parse("max_split_size_mb:40"))
    at_the_limit, oversize = allocator.malloc(40 * MIB), allocator.malloc(100 * MIB)
    allocator.free(at_the_limit)
    allocator.free(oversize)
    assert allocator.malloc(38 * MIB).address != at_the_limit.address
    assert allocator.malloc(80 * MIB).address != oversize.address, "20 MiB is already too much to waste"
    assert allocator.malloc(80 * MIB + 1).address == oversize.address


def test_oversize_blocks_go_back_before_the_whole_cache_does() -> None:
    allocator = CachingAllocator(parse("max_split_size_mb:40"), capacity=150 * MIB)
    small, oversize = allocator.malloc(20 * MIB), allocator.malloc(100 * MIB)
    allocator.free(small)
    allocator.free(oversize)
    allocator.malloc(60 * MIB)
    assert (allocator.stats.reserved, allocator.stats.retries) == (80 * MIB, 0)


def test_max_split_with_expandable_segments_in_the_cache() -> None:
    """``test_max_split_expandable``: 120 MiB allowed, the settings change between requests."""
    fixed = parse("expandable_segments:False,max_split_size_mb:40")
    expandable = parse("expandable_segments:True,max_split_size_mb:40")
    allocator = CachingAllocator(fixed, capacity=120 * MIB)
    live = []
    for settings in (fixed, expandable, fixed):
        allocator.change(settings)
        live.append(allocator.malloc(40 * MIB))
    with pytest.raises(OutOfMemory):
        allocator.malloc(40 * MIB)
    for block in live:
        allocator.free(block)
    assert allocator.malloc(120 * MIB).nbytes == 120 * MIB
    assert allocator.stats.reserved == 120 * MIB


def test_garbage_collection_with_expandable_segments_in_the_cache() -> None:
    """``test_garbage_collect_expandable``: collection leaves expandable blocks alone."""
    fixed = parse("garbage_collection_threshold:0.5,per_process_memory_fraction:0.5")
    expandable = parse(
        "expandable_segments:True,garbage_collection_threshold:0.5,per_process_memory_fraction:0.5"
    )
    allocator = CachingAllocator(fixed, device_bytes=240 * MIB)
    first = allocator.malloc(40 * MIB)
    allocator.change(expandable)
    second = allocator.malloc(40 * MIB)
    allocator.free(first)
    allocator.free(second)
    allocator.malloc(80 * MIB)
    assert allocator.stats.retries == 0
    assert allocator.stats.reserved == 80 * MIB, "the first went back, the second was extended"


@pytest.mark.parametrize(
    ("settings", "reserved"),
    [
        ("garbage_collection_threshold:0.5,per_process_memory_fraction:0.5", 70 * MIB),
        ("garbage_collection_threshold:0.9,per_process_memory_fraction:0.9", 130 * MIB),
        ("garbage_collection_threshold:0.1", 130 * MIB),
    ],
)
def test_garbage_is_collected_above_the_threshold_of_a_memory_fraction(settings: str, reserved: int) -> None:
    allocator = CachingAllocator(parse(settings), device_bytes=200 * MIB)
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(70 * MIB)
    assert (allocator.stats.reserved, allocator.stats.retries) == (reserved, 0)


def test_garbage_collection_spares_what_was_used_of_late() -> None:
    allocator = CachingAllocator(
        parse("garbage_collection_threshold:0.2,per_process_memory_fraction:0.9"), device_bytes=300 * MIB
    )
    old, young = allocator.malloc(60 * MIB), allocator.malloc(50 * MIB)
    allocator.free(old)
    allocator.free(young)
    for _ in range(5):
        allocator.free(allocator.malloc(50 * MIB))
    allocator.malloc(100 * MIB)
    assert allocator.stats.reserved == 150 * MIB


def test_the_memory_fraction_is_of_the_device() -> None:
    allocator = CachingAllocator(parse("per_process_memory_fraction:0.25"), device_bytes=400 * MIB)
    allocator.malloc(90 * MIB)
    with pytest.raises(OutOfMemory) as raised:
        allocator.malloc(12 * MIB)
    assert raised.value.capacity == 100 * MIB
    with pytest.raises(UsageError, match="name the GPU"):
        CachingAllocator(parse("per_process_memory_fraction:0.25"))


def test_expandable_segments_grow_by_pages() -> None:
    allocator = CachingAllocator(parse("expandable_segments:True"))
    allocator.malloc(1)
    assert allocator.stats.reserved == 2 * MIB
    large = allocator.malloc(3 * MIB)
    assert allocator.stats.reserved == 22 * MIB
    following = allocator.malloc(50 * MIB)
    assert following.address == large.address + 3 * MIB, "one segment, extended"
    assert allocator.stats.reserved == 62 * MIB
    assert following.nbytes == 50 * MIB, "what is left is split off from 512 bytes on"


def test_the_lowest_of_equal_blocks_is_taken_in_expandable_segments_too() -> None:
    allocator = CachingAllocator(parse("expandable_segments:True"))
    first, _, third, _ = (allocator.malloc(2 * MIB) for _ in range(4))
    allocator.free(third)
    allocator.free(first)
    assert allocator.malloc(2 * MIB).address == first.address


def test_expandable_segments_unmap_whole_pages_only() -> None:
    allocator = CachingAllocator(parse("expandable_segments:True"))
    first, second, third = (allocator.malloc(nbytes * MIB) for nbytes in (10, 60, 10))
    allocator.free(second)
    allocator.empty_cache()
    assert allocator.stats.reserved == 40 * MIB, "the pages from 20 to 60 MiB went back"
    assert allocator.stats.inactive_split == 0, "torch leaves expandable segments out of this count"
    again = allocator.malloc(60 * MIB)
    assert again.address == second.address, "mapped again at the lowest address"
    for block in (first, third, again):
        allocator.free(block)
    allocator.empty_cache()
    assert (allocator.stats.reserved, allocator.snapshot()) == (0, ())


def test_expandable_segments_save_what_growing_sizes_waste() -> None:
    """The reason for them in the notes: a batch that grows step by step."""
    events: list[tuple[int, int]] = []
    for step in range(1, 9):
        storages = [(step * 10 + part, (64 + 4 * step) * MIB // (part + 1)) for part in range(4)]
        events += storages + [(storage, -nbytes) for storage, nbytes in storages]
    fixed = replay(events)
    expandable = replay(events, parse("expandable_segments:True"))
    assert expandable.peak_allocated <= fixed.peak_allocated
    assert expandable.peak_reserved < 0.7 * fixed.peak_reserved


def test_a_replay_tells_where_a_run_dies() -> None:
    events = [(0, 30 * MIB), (1, 30 * MIB), (2, 0), (0, -30 * MIB), (0, 12 * MIB), (3, 50 * MIB), (4, MIB)]
    free = replay(events)
    assert free.death is None
    assert free.block_bytes == {0: 12 * MIB, 1: 30 * MIB, 3: 50 * MIB, 4: MIB}
    assert np.array_equal(free.allocated // MIB, [30, 60, 60, 30, 42, 92, 93])
    assert np.array_equal(free.reserved // MIB, [30, 60, 60, 60, 60, 110, 112])
    assert (free.fragmentation.event, free.fragmentation.unallocated) == (6, 19 * MIB)
    assert free.fragmentation.inactive_split == 19 * MIB
    dead = replay(events, capacity=100 * MIB)
    assert dead.death is not None
    assert (dead.death.event, dead.death.requested) == (5, 50 * MIB)
    assert (dead.death.allocated, dead.death.reserved) == (42 * MIB, 60 * MIB)
    assert (dead.death.reserved_but_unallocated, dead.death.retries) == (18 * MIB, 1)
    assert len(dead.allocated) == len(dead.reserved) == 5


def test_a_replay_refuses_what_cannot_have_happened() -> None:
    with pytest.raises(ValueError, match="event 1: storage 7 is born while it lives"):
        replay([(7, 1), (7, 1)])
    with pytest.raises(ValueError, match="event 0: storage 7 dies"):
        replay([(7, -1)])
