"""What holds of the caching allocator whatever is asked of it, under all settings."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mem_gpt_cli.allocator import (
    AllocatorSettings,
    Block,
    CachingAllocator,
    OutOfMemory,
    SegmentView,
    replay,
    restore,
)

MIB = 1 << 20
DEVICE_BYTES = 512 * MIB

SIZES = st.one_of(
    st.integers(1, 4096),
    st.integers(1, 64 * MIB),
    st.sampled_from([512, MIB, MIB + 1, 2 * MIB, 10 * MIB - 1, 10 * MIB, 11 * MIB, 20 * MIB, 40 * MIB]),
)
ACTIONS = st.lists(st.one_of(SIZES, st.integers(-50, 0)), max_size=80)
"""A size asks for a block, a negative number frees a live one by its place, 0 empties the cache."""

DIVISIONS = st.sampled_from([0, 1, 2, 4, 8])


@st.composite
def allocator_settings(draw: st.DrawFn, expandable: bool | None = None) -> AllocatorSettings:
    large = draw(st.sampled_from([20, 32])) * MIB
    return AllocatorSettings(
        expandable_segments=draw(st.booleans()) if expandable is None else expandable,
        max_split_bytes=draw(st.sampled_from([None, None, 32 * MIB, 40 * MIB])),
        max_non_split_rounding_bytes=draw(st.sampled_from([large, 64 * MIB])),
        large_segment_bytes=large,
        garbage_collection_threshold=draw(st.sampled_from([0.0, 0.3, 0.8])),
        roundup_power2_divisions=draw(st.tuples(*[DIVISIONS] * 16)),
        memory_fraction=draw(st.sampled_from([1.0, 0.6])),
    )


def act(allocator: CachingAllocator, actions: list[int]) -> list[Block]:
    """Act, and check after each action; the blocks that live at the end."""
    live: list[Block] = []
    for action in actions:
        if action > 0:
            try:
                live.append(allocator.malloc(action))
            except OutOfMemory as error:
                check_death(allocator, error, action)
        elif action < 0 and live:
            allocator.free(live.pop(-action % len(live)))
        elif action == 0:
            allocator.empty_cache()
        check(allocator, live)
    return live


def check(allocator: CachingAllocator, live: list[Block]) -> None:
    segments = allocator.snapshot()
    check_places(segments)
    blocks = [block for segment in segments for block in segment.blocks]
    shown = [(block.address, block.nbytes, block.requested) for block in blocks if block.allocated]
    assert sorted(shown) == sorted((block.address, block.nbytes, block.requested) for block in live)
    stats = allocator.stats
    assert stats.allocated == sum(block.nbytes for block in blocks if block.allocated)
    assert stats.requested == sum(block.requested for block in blocks)
    assert stats.reserved == sum(segment.nbytes for segment in segments)
    parts = [
        block.nbytes
        for segment in segments
        if not segment.expandable and len(segment.blocks) > 1
        for block in segment.blocks
        if not block.allocated
    ]
    assert (stats.inactive_split, stats.inactive_split_blocks) == (sum(parts), len(parts))
    assert stats.segments == sum(not segment.expandable for segment in segments)
    assert stats.requested <= stats.allocated <= stats.reserved <= DEVICE_BYTES
    assert stats.allocated <= stats.allocated_peak
    assert stats.reserved <= stats.reserved_peak <= DEVICE_BYTES
    assert stats.inactive_split <= stats.inactive_split_peak


def check_places(segments: tuple[SegmentView, ...]) -> None:
    """Segments lie apart, blocks fill them without a gap, and no two free ones touch."""
    for before, after in itertools.pairwise(segments):
        assert before.address + before.nbytes <= after.address
    for segment in segments:
        address = segment.address
        for block in segment.blocks:
            assert block.address == address
            assert block.nbytes > 0
            assert block.nbytes % 512 == 0
            address += block.nbytes
        assert address == segment.address + segment.nbytes
        assert segment.nbytes % (2 * MIB) == 0
        for before_, after_ in itertools.pairwise(segment.blocks):
            assert before_.allocated or after_.allocated


def check_death(allocator: CachingAllocator, error: OutOfMemory, requested: int) -> None:
    """Nothing that could have been given back is left, and still there is no room."""
    assert error.requested == requested
    assert error.reserved_but_unallocated == allocator.stats.reserved - allocator.stats.allocated
    assert all(
        any(block.allocated for block in segment.blocks)
        for segment in allocator.snapshot()
        if not segment.expandable
    )
    assert error.capacity is not None
    if not allocator.settings.expandable_segments:
        assert error.reserved + error.attempted > error.capacity


@given(allocator_settings(), ACTIONS)
@hypothesis_settings(deadline=None, max_examples=150)
def test_invariants(settings: AllocatorSettings, actions: list[int]) -> None:
    allocator = CachingAllocator(settings, DEVICE_BYTES)
    for block in act(allocator, actions):
        assert block.nbytes >= block.requested
        allocator.free(block)
    allocator.empty_cache()
    check(allocator, [])
    assert allocator.stats.reserved == allocator.stats.allocated == allocator.stats.requested == 0
    assert allocator.snapshot() == ()


@given(allocator_settings(expandable=False), ACTIONS, ACTIONS)
@hypothesis_settings(deadline=None, max_examples=60)
def test_a_restored_allocator_goes_on_as_the_first(
    settings: AllocatorSettings, before: list[int], after: list[int]
) -> None:
    settings = replace(settings, garbage_collection_threshold=0.0)  # no snapshot shows the age of blocks
    first = CachingAllocator(settings, device_bytes=DEVICE_BYTES)
    live = act_without_checks(first, before, [])
    second = CachingAllocator(settings, device_bytes=DEVICE_BYTES)
    restored = restore(second, first.snapshot())
    assert second.snapshot() == first.snapshot()
    second.driver.reserve(first.driver.reserve(0, 1) - second.driver.reserve(0, 1), 1)
    same = [restored[block.address] for block in live]
    act_without_checks(first, after, live)
    act_without_checks(second, after, same)
    assert second.snapshot() == first.snapshot()
    assert (second.stats.allocated, second.stats.reserved) == (first.stats.allocated, first.stats.reserved)
    assert second.stats.inactive_split == first.stats.inactive_split


def act_without_checks(allocator: CachingAllocator, actions: list[int], live: list[Block]) -> list[Block]:
    live = list(live)
    for action in actions:
        if action > 0:
            try:
                live.append(allocator.malloc(action))
            except OutOfMemory:
                continue
        elif action < 0 and live:
            allocator.free(live.pop(-action % len(live)))
        elif action == 0:
            allocator.empty_cache()
    return live


@st.composite
def storages(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Events of storages that are born, die, and may be born again."""
    live: dict[int, int] = {}
    events = []
    for storage, nbytes in draw(st.lists(st.tuples(st.integers(0, 20), SIZES), max_size=80)):
        if storage in live:
            events.append((storage, -live.pop(storage)))
        else:
            live[storage] = nbytes
            events.append((storage, nbytes))
    return events


@given(allocator_settings(), storages())
@hypothesis_settings(deadline=None, max_examples=100)
def test_replays(settings: AllocatorSettings, events: list[tuple[int, int]]) -> None:
    once = replay(events, settings, device_bytes=1 << 40)
    again = replay(events, settings, device_bytes=1 << 40)
    assert np.array_equal(once.allocated, again.allocated)
    assert np.array_equal(once.reserved, again.reserved)
    assert (once.block_bytes, once.fragmentation) == (again.block_bytes, again.fragmentation)
    assert once.death is None
    assert len(once.allocated) == len(once.reserved) == len(events)
    live = np.cumsum([nbytes for _, nbytes in events], dtype=np.int64)
    assert (live <= once.allocated).all()
    assert (once.allocated <= once.reserved).all()
    assert once.peak_allocated == max([0, *once.allocated])
    assert once.peak_reserved == max([0, *once.reserved]) == once.fragmentation.reserved


@given(allocator_settings(), storages(), st.integers(0, 8))
@hypothesis_settings(deadline=None, max_examples=100)
def test_a_replay_dies_only_for_want_of_memory(
    settings: AllocatorSettings, events: list[tuple[int, int]], eighths: int
) -> None:
    free = replay(events, settings, device_bytes=1 << 40)
    enough = replay(events, settings, capacity=free.peak_reserved, device_bytes=1 << 40)
    assert enough.death is None
    assert np.array_equal(enough.reserved, free.reserved)
    capacity = free.peak_reserved * eighths // 8
    less = replay(events, settings, capacity=capacity, device_bytes=1 << 40)
    assert less.peak_reserved <= capacity
    if less.death is None:
        assert capacity >= free.peak_allocated or settings.max_split_bytes is not None
    else:
        assert len(less.allocated) == less.death.event
        assert less.death.retries >= 1
        assert less.death.allocated <= less.death.reserved <= capacity
        assert events[less.death.event][1] == less.death.requested
