"""The CPU allocator's own account: each allocation and release, as torch's profiler reports them.

Torch tells its profiler of every allocation of the calling thread, kernels' inner buffers included. The
profiler is started for the scope of user annotations alone, which nothing here makes, so that it records
allocations and no operators: a recorded run takes hardly longer than a bare one.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch._C import _autograd, _profiler

from mem_gpt_cli.errors import EnvironmentUnavailableError

_BEACON_BYTES = 7919
_NO_KINETO_CHATTER = "6"


class Allocation(NamedTuple):
    """One event of the allocator, at a ``time.time_ns()``; ``nbytes`` is negative for a release."""

    time_ns: int
    address: int
    nbytes: int


@dataclass
class AllocatorTrace:
    """What the allocator did between entering and leaving ``record_allocator``, in order of time.

    Releases of memory that was allocated before the record began are left out, so the running sum of
    ``nbytes`` is what the allocator handed out since then and was not yet given back.
    """

    events: list[Allocation] = field(default_factory=list)


@contextmanager
def record_allocator() -> Iterator[AllocatorTrace]:
    """Record every allocation that this thread makes from torch's CPU allocator.

    Raises:
        EnvironmentUnavailableError: if this build of torch reports no allocations.
    """
    trace = AllocatorTrace()
    gc.collect()
    with _recording() as raw:
        beacons = [_beacon()]
        try:
            yield trace
        finally:
            beacons.append(_beacon())
    trace.events.extend(_owned(_aligned(raw, beacons)))


@contextmanager
def _recording() -> Iterator[list[Allocation]]:
    """Run torch's profiler; the list is filled at the end, by the profiler's own clock."""
    os.environ.setdefault("KINETO_LOG_LEVEL", _NO_KINETO_CHATTER)
    config = _profiler.ProfilerConfig(
        _profiler.ProfilerState.KINETO,
        False,  # shapes
        True,  # memory
        False,  # stacks
        False,  # flops
        False,  # modules
        _profiler._ExperimentalConfig(),
    )
    activities = {_profiler.ProfilerActivity.CPU}
    raw: list[Allocation] = []
    _autograd._prepare_profiler(config, activities)
    enable: Any = _autograd._enable_profiler  # torch's stub lacks the scopes
    enable(config, activities, {_profiler.RecordScope.USER_SCOPE})
    try:
        yield raw
    finally:
        results: Any = _autograd._disable_profiler()
        raw.extend(_allocations(results.experimental_event_tree()))


def _allocations(nodes: list[Any]) -> Iterator[Allocation]:
    stack = list(reversed(nodes))
    while stack:
        node = stack.pop()
        stack.extend(reversed(node.children))
        if node.tag == _profiler._EventType.Allocation:
            fields = node.extra_fields
            if fields.device.type == "cpu":
                yield Allocation(node.start_time_ns, fields.ptr, fields.alloc_size)


class _Beacon(NamedTuple):
    """An allocation whose time is known by ``time.time_ns()``: it lies between ``before`` and ``after``."""

    address: int
    before: int
    after: int


def _beacon() -> _Beacon:
    before = time.time_ns()
    marker = torch.empty(_BEACON_BYTES, dtype=torch.uint8)
    after = time.time_ns()
    return _Beacon(marker.untyped_storage().data_ptr(), before, after)


def _aligned(raw: list[Allocation], beacons: list[_Beacon]) -> list[Allocation]:
    """The events less those of the beacons, on the clock of ``time.time_ns()``."""
    if len(raw) < 4 or raw[0][1:] != (beacons[0].address, _BEACON_BYTES):
        raise EnvironmentUnavailableError(
            f"torch {torch.__version__} reports no allocations to its profiler, so memory cannot be measured "
            "on the CPU: install a build of torch with Kineto"
        )
    first, last = raw[0], raw[-2]
    begin, end = _lag(first, beacons[0]), _lag(last, beacons[1])
    drift = (end - begin) / max(1, last.time_ns - first.time_ns)
    inner = raw[2:-2]
    if begin == end == 0:
        return inner
    return [
        event._replace(time_ns=event.time_ns + begin + round(drift * (event.time_ns - first.time_ns)))
        for event in inner
    ]


def _lag(event: Allocation, beacon: _Beacon) -> int:
    """What to add to the event's time; 0 where the clocks agree."""
    if beacon.before <= event.time_ns <= beacon.after:
        return 0
    return (beacon.before + beacon.after) // 2 - event.time_ns


def _owned(events: list[Allocation]) -> Iterator[Allocation]:
    live: set[int] = set()
    for event in events:
        if event.nbytes > 0:
            live.add(event.address)
            yield event
        elif event.address in live:
            live.remove(event.address)
            yield event
