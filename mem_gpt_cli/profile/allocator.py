"""The CPU allocator's own account: each allocation and release, as torch's profiler reports them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class Allocation(NamedTuple):
    """One event of the allocator: ``nbytes`` is negative for a release."""

    time_ns: int
    address: int
    nbytes: int


@dataclass
class AllocatorTrace:
    """What the allocator did between entering and leaving ``record_allocator``, in order."""

    events: list[Allocation] = field(default_factory=list)


@contextmanager
def record_allocator() -> Iterator[AllocatorTrace]:
    """Record every allocation of the CPU allocator in this process, kernels' inner buffers included."""
    trace = AllocatorTrace()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        yield trace
    results: Any = profiler.profiler
    trace.events.extend(sorted(_allocations(results.kineto_results.experimental_event_tree())))


def _allocations(nodes: list[Any]) -> Iterator[Allocation]:
    stack = list(nodes)
    while stack:
        node = stack.pop()
        stack.extend(node.children)
        if node.tag == torch._C._profiler._EventType.Allocation:
            fields = node.extra_fields
            yield Allocation(node.start_time_ns, fields.ptr, fields.alloc_size)
