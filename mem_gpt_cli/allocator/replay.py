"""A sequence of births and deaths of storages, run through the caching allocator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mem_gpt_cli.allocator.block import Block
from mem_gpt_cli.allocator.caching import CachingAllocator
from mem_gpt_cli.allocator.out_of_memory import OutOfMemory
from mem_gpt_cli.allocator.settings import AllocatorSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fragmentation:
    """What the reserved memory was made of after the event at which it was highest; bytes.

    ``inactive_split`` lies in free parts of segments that also hold live blocks: of ``reserved`` less
    ``allocated`` it is what could not go back to the driver.
    """

    event: int
    reserved: int
    allocated: int
    requested: int
    inactive_split: int

    @property
    def unallocated(self) -> int:
        """Bytes reserved but unallocated."""
        return self.reserved - self.allocated


@dataclass(frozen=True)
class Death:
    """Where a run ends for want of memory; ``retries`` counts the times that the cache was emptied for it."""

    event: int
    requested: int
    allocated: int
    reserved: int
    reserved_but_unallocated: int
    retries: int

    @classmethod
    def of(cls, event: int, error: OutOfMemory) -> Death:
        """What the allocator said when it gave up, at an event."""
        return cls(
            event=event,
            requested=error.requested,
            allocated=error.allocated,
            reserved=error.reserved,
            reserved_but_unallocated=error.reserved_but_unallocated,
            retries=error.retries,
        )


@dataclass(frozen=True, eq=False)
class Replay:
    """The allocator's memory over a sequence of events.

    ``allocated[e]`` is after event ``e``; ``reserved[e]`` is the higher of before and after it, which differs
    from after it only where cached segments went back. Both end before the event of a death. ``block_bytes``
    holds the size of each storage's latest block. ``retries`` counts the requests for which the cache was
    emptied.
    """

    allocated: Int64
    reserved: Int64
    block_bytes: dict[int, int]
    peak_allocated: int
    peak_reserved: int
    fragmentation: Fragmentation
    retries: int
    death: Death | None


def replay(
    events: Iterable[tuple[int, int]],
    settings: AllocatorSettings | None = None,
    capacity: int | None = None,
    *,
    device_bytes: int | None = None,
) -> Replay:
    """Run events through a fresh allocator until they end or its memory does not suffice.

    An event is (storage, +bytes) for a birth, (storage, -bytes) for a death; one of 0 bytes changes nothing.
    A storage may be born again after its death. ``capacity`` and ``device_bytes`` are as for
    ``CachingAllocator``. Raises ``ValueError`` for the birth of a live storage or the death of another.
    """
    import numpy as np  # not at import: the allocator itself serves lenses that start without it

    allocator = CachingAllocator(settings, capacity, device_bytes=device_bytes)
    stats = allocator.stats
    live: dict[int, Block] = {}
    block_bytes: dict[int, int] = {}
    allocated: list[int] = []
    reserved: list[int] = []
    highest = Fragmentation(0, 0, 0, 0, 0)
    death = None
    for event, (storage, nbytes) in enumerate(events):
        before = stats.reserved
        if nbytes > 0:
            if storage in live:
                raise ValueError(f"event {event}: storage {storage} is born while it lives")
            try:
                block = allocator.malloc(nbytes)
            except OutOfMemory as error:
                death = Death.of(event, error)
                break
            live[storage] = block
            block_bytes[storage] = block.nbytes
            if stats.reserved > highest.reserved:
                highest = Fragmentation(
                    event, stats.reserved, stats.allocated, stats.requested, stats.inactive_split
                )
        elif nbytes < 0:
            if storage not in live:
                raise ValueError(f"event {event}: storage {storage} dies without having been born")
            allocator.free(live.pop(storage))
        allocated.append(stats.allocated)
        reserved.append(max(before, stats.reserved))
    return Replay(
        allocated=np.asarray(allocated, dtype=np.int64),
        reserved=np.asarray(reserved, dtype=np.int64),
        block_bytes=block_bytes,
        peak_allocated=stats.allocated_peak,
        peak_reserved=stats.reserved_peak,
        fragmentation=highest,
        retries=stats.retries,
        death=death,
    )
