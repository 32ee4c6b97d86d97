"""Whose bytes they are: the allocator's events explained by the ledger's storages.

The allocator's record knows every byte and no reason; the ledger knows the reason of every storage that an
operator returned. Both note address and time, so each storage is found among the allocations: the latest
at its address when the ledger first saw it. What no storage explains was taken by a kernel for itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mem_gpt_cli.ledger import EventLog, Moment
from mem_gpt_cli.ledger.allocator import AllocatorTrace
from mem_gpt_cli.ledger.log import Int64, default_component
from mem_gpt_cli.report import COMPONENTS

WORKSPACE = COMPONENTS.index("workspace")


class TimedLog(EventLog):
    """A log that notes when each operation was over, and how many bytes are live."""

    def __init__(self) -> None:
        super().__init__()
        self.operation_time_ns: list[int] = []
        self.span_end_ns: list[int] = []
        self.live_bytes = 0

    def operate(self, name: str, module: str) -> None:
        """Name the operation that the following events belong to: it has just returned."""
        self.operation_time_ns.append(time.time_ns())
        super().operate(name, module)

    def leave(self) -> None:
        """The span is over; what follows until the next one still counts to it."""
        self.span_end_ns.append(time.time_ns())

    def _append(self, storage: int, sign: int) -> None:
        self.live_bytes += sign * self.storage_bytes[storage]
        super()._append(storage, sign)


class Sighting(NamedTuple):
    """When and where the ledger saw a storage for the first time."""

    storage: int
    address: int
    time_ns: int


class Sightings:
    """The ledger's ``on_birth``: notes each new storage's address."""

    def __init__(self) -> None:
        self.seen: list[Sighting] = []

    def __call__(self, storage: int, tensor: torch.Tensor) -> None:
        """Note one."""
        self.seen.append(Sighting(storage, tensor.untyped_storage().data_ptr(), time.time_ns()))


class InnerBuffer(NamedTuple):
    """What the kernels of one operator took for themselves: the largest at once, and how often."""

    operation: str
    largest_bytes: int
    calls: int


@dataclass(frozen=True)
class Account:
    """Memory over time: ``live[e]`` bytes after event ``e``, ``by_component[e, c]`` of them in component c.

    ``operation[e]`` and ``span[e]`` index the log's. ``foreign_bytes`` are storages that outlive the load and
    that the allocator never handed out: memory-mapped files, memory of another library.
    """

    log: TimedLog
    time_ns: Int64
    live: Int64
    by_component: Int64
    operation: Int64
    span: Int64
    inner: tuple[InnerBuffer, ...] = ()
    foreign_bytes: int = 0

    def moment(self, event: int) -> Moment:
        """The state after one event."""
        return Moment(
            allocated_bytes=int(self.live[event]),
            components=dict(zip(COMPONENTS, map(int, self.by_component[event]), strict=True)),
            operation=self.log.operations[int(self.operation[event])],
            event=event,
        )

    def at_span_ends(self) -> Int64:
        """The last event of each span before it was left."""
        ends = np.searchsorted(self.time_ns, np.asarray(self.log.span_end_ns), side="right") - 1
        return np.asarray(ends, dtype=np.int64)

    def span_peaks(self) -> list[Moment]:
        """The highest moment of each span, the first of equals."""
        events = [np.flatnonzero(self.span == span) for span in range(len(self.log.spans))]
        return [self.moment(int(inside[self.live[inside].argmax()])) for inside in events]

    def peaks(self) -> dict[str, Moment]:
        """The highest moment of each phase over all its spans, the first of equals."""
        found: dict[str, Moment] = {}
        for span, moment in zip(self.log.spans, self.span_peaks(), strict=True):
            highest = found.setdefault(span.phase, moment)
            if moment.allocated_bytes > highest.allocated_bytes:
                found[span.phase] = moment
        return found


def account_of(log: TimedLog, sightings: list[Sighting], trace: AllocatorTrace) -> Account:
    """Explain the allocator's events by the ledger's storages."""
    events = np.asarray(trace.events, dtype=np.int64).reshape(-1, 3)
    events = events[events[:, 0] <= log.span_end_ns[-1]]  # the clearing away is no part of the workload
    allocation = _allocation_of_each_event(events)
    born = np.flatnonzero(events[:, 2] > 0)
    storage, foreign = _match(log, sightings, events[born])
    component_of_allocation = _components(log, sightings, storage)
    # A span begins with what is live, even if nothing is allocated in it: an event of no bytes says so.
    starts = _span_starts(log)
    time_ns = np.concatenate([events[:, 0], starts])
    nbytes = np.concatenate([events[:, 2], np.zeros_like(starts)])
    component = np.concatenate([component_of_allocation[allocation], np.full_like(starts, WORKSPACE)])
    order = np.argsort(time_ns, kind="stable")
    time_ns, nbytes, component = time_ns[order], nbytes[order], component[order]
    spread = np.zeros((len(nbytes), len(COMPONENTS)), dtype=np.int64)
    spread[np.arange(len(nbytes)), component] = nbytes
    span = np.clip(np.searchsorted(starts, time_ns, side="right") - 1, 0, None)
    unexplained = events[born][storage < 0]
    return Account(
        log=log,
        time_ns=time_ns,
        live=nbytes.cumsum(),
        by_component=spread.cumsum(axis=0),
        operation=_operations(log, time_ns),
        span=span,
        inner=_inner_buffers(log, unexplained),
        foreign_bytes=foreign,
    )


def _allocation_of_each_event(events: Int64) -> Int64:
    """For each event the number of the allocation that it makes or releases."""
    number = np.empty(len(events), dtype=np.int64)
    live: dict[int, int] = {}
    count = 0
    for index, (address, nbytes) in enumerate(zip(events[:, 1].tolist(), events[:, 2].tolist(), strict=True)):
        if nbytes > 0:
            live[address] = number[index] = count
            count += 1
        else:
            number[index] = live.pop(address)
    return number


def _match(log: EventLog, sightings: list[Sighting], allocations: Int64) -> tuple[Int64, int]:
    """Each allocation's storage, -1 where none is known, and the bytes of lasting storages without one."""
    storage = np.full(len(allocations), -1, dtype=np.int64)
    by_address: dict[int, list[int]] = defaultdict(list)
    for number, address in enumerate(allocations[:, 1].tolist()):
        by_address[address].append(number)
    storages, signs, operations = log.arrays()
    loading = np.asarray([operation.span == 0 for operation in log.operations])
    gone = set(storages[(signs < 0) & loading[operations]].tolist())
    foreign = 0
    for sighting in sightings:
        numbers = np.asarray(by_address.get(sighting.address, ()), dtype=np.int64)
        at = int(np.searchsorted(allocations[numbers, 0], sighting.time_ns, side="right")) - 1
        if at < 0:
            foreign += 0 if sighting.storage in gone else log.storage_bytes[sighting.storage]
        else:
            storage[numbers[at]] = sighting.storage
    return storage, foreign


def _components(log: TimedLog, sightings: list[Sighting], storage: Int64) -> Int64:
    """The component of each allocation."""
    starts = _span_starts(log)
    of_storage = np.full(len(log.storage_bytes) + 1, WORKSPACE, dtype=np.int64)  # the last: no storage
    for number, _, time_ns in sightings:
        span = max(0, int(np.searchsorted(starts, time_ns, side="right")) - 1)
        label = log.storage_component[number] or default_component(log.spans[span].phase)
        of_storage[number] = COMPONENTS.index(label)
    return of_storage[storage]


def _span_starts(log: TimedLog) -> Int64:
    """When each span began: the time of its first operation, which ``enter`` makes."""
    first: dict[int, int] = {}
    for operation, time_ns in zip(log.operations, log.operation_time_ns, strict=True):
        first.setdefault(operation.span, time_ns)
    return np.asarray([first[span] for span in range(len(log.spans))], dtype=np.int64)


def _operations(log: TimedLog, time_ns: Int64) -> Int64:
    """The operation that was running at each time: the next one to be over, within the same span."""
    over = np.asarray(log.operation_time_ns, dtype=np.int64)
    span = np.asarray([operation.span for operation in log.operations], dtype=np.int64)
    following = np.searchsorted(over, time_ns, side="left")
    last = np.clip(following - 1, 0, len(over) - 1)
    following = np.clip(following, 0, len(over) - 1)
    same_span = (span[following] == span[last]) | (over[following] == time_ns)
    return np.where(same_span, following, last)


def _inner_buffers(log: TimedLog, allocations: Int64) -> tuple[InnerBuffer, ...]:
    """Allocations without a storage by the operator that made them, the largest first."""
    found: dict[str, list[int]] = defaultdict(list)
    operations = _operations(log, allocations[:, 0])
    for operation, nbytes in zip(operations.tolist(), allocations[:, 2].tolist(), strict=True):
        found[log.operations[operation].name].append(nbytes)
    buffers = [InnerBuffer(name, max(sizes), len(sizes)) for name, sizes in found.items()]
    return tuple(sorted(buffers, key=lambda buffer: -buffer.largest_bytes))
