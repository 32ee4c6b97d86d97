"""Does the model do what the real allocator did? A recorded history, replayed action by action."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from mem_gpt_cli.allocator.beginning import beginning
from mem_gpt_cli.allocator.block import Block
from mem_gpt_cli.allocator.caching import CachingAllocator
from mem_gpt_cli.allocator.history import Entry, History
from mem_gpt_cli.allocator.out_of_memory import OutOfMemory
from mem_gpt_cli.allocator.restore import restore
from mem_gpt_cli.allocator.stats import Stats

GIVES_BACK = ("segment_free", "segment_unmap")
BEYOND_ALL = 1 << 60
"""Addresses from here on are no real ones."""

DRIVER_ACTIONS = ("segment_alloc", "segment_map", *GIVES_BACK)


@dataclass(frozen=True)
class Difference:
    """The first action in which the model departs: its index in the history, and what each side did."""

    entry: int
    recorded: str
    modelled: str

    def __str__(self) -> str:
        return f"action {self.entry}: recorded {self.recorded}; modelled {self.modelled}"


@dataclass(frozen=True)
class Comparison:
    """How far the model and a history agree.

    ``actions`` were replayed, of which ``allocations`` came to lie at the recorded address and
    ``driver_calls`` had the recorded kind, place and size; ``difference`` is ``None`` where all did and the
    segments at the end are equal block by block. ``stats`` are the model's at the end.
    """

    actions: int
    allocations: int
    driver_calls: int
    difference: Difference | None
    stats: Stats


class Departure(Exception):  # noqa: N818  (not an error: the answer to a question)
    """The model asks something of the driver that the real allocator did not ask."""


class RecordedDriver:
    """Answers as the driver answered when the history was recorded, and takes no other calls."""

    def __init__(self, history: History) -> None:
        self.answered = 0
        self.expected: deque[Entry] = deque()
        self._large_page = history.settings.large_segment_bytes
        self._maps = deque(entry for entry in history.entries if entry.action == "segment_map")
        self._reserved: list[range] = []

    def malloc(self, nbytes: int) -> int | None:
        """The recorded address; ``None`` where memory was given back instead, or the end came."""
        entry = self._next("segment_alloc", None, nbytes)
        return None if entry is None else entry.address

    def free(self, address: int, nbytes: int) -> None:
        """Check that the segment was given back."""
        self._demand("segment_free", address, nbytes)

    def reserve(self, nbytes: int, page: int) -> int:
        """Where the history next maps such pages outside of what is reserved; above all where it never does.

        A reservation is not recorded. Where the memory for it was refused, only a later map tells its place.
        """
        large = page == self._large_page
        fresh = (
            entry.address
            for entry in self._maps
            if (entry.nbytes % self._large_page == 0) == large
            and not any(entry.address in reserved for reserved in self._reserved)
        )
        if self.expected and self.expected[0].action == "segment_map":
            address = self.expected[0].address
        else:
            address = next(fresh, BEYOND_ALL + sum(map(len, self._reserved)))
        self._reserved.append(range(address, address + nbytes))
        return address

    def map(self, address: int, nbytes: int) -> bool:
        """Whether the memory was given."""
        if self._next("segment_map", address, nbytes) is None:
            return False
        self._maps.popleft()
        return True

    def unmap(self, address: int, nbytes: int) -> None:
        """Check that the memory was given back."""
        self._demand("segment_unmap", address, nbytes)

    def gives_back_first(self) -> bool:
        """Whether the calls to come begin with giving memory back."""
        return bool(self.expected) and self.expected[0].action in GIVES_BACK

    def _next(self, action: str, address: int | None, nbytes: int) -> Entry | None:
        """The call to come if it is this one, ``None`` if the driver refused it."""
        asked = Entry(action, address or 0, nbytes)
        if not self.expected:
            raise Departure(str(asked))
        entry = self.expected[0]
        if entry.action in GIVES_BACK or entry.action == "oom":
            return None
        if (entry.action, entry.nbytes) != (action, nbytes) or address not in (None, entry.address):
            raise Departure(str(asked))
        self.answered += 1
        return self.expected.popleft()

    def _demand(self, action: str, address: int, nbytes: int) -> None:
        asked = Entry(action, address, nbytes)
        if not self.expected or self.expected[0] != asked:
            raise Departure(str(asked))
        self.expected.popleft()
        self.answered += 1


class _Replayed:
    """A history on its way through the model."""

    def __init__(self, history: History, device_bytes: int | None) -> None:
        self.history = history
        self.driver = RecordedDriver(history)
        self.allocator = CachingAllocator(history.settings, device_bytes=device_bytes, driver=self.driver)
        self.live: dict[int, Block] = restore(self.allocator, beginning(history))
        self.actions = 0
        self.allocations = 0

    def run(self) -> Comparison:
        difference = None
        try:
            for entry in self.history.entries:
                self.act(entry)
                self.actions += 1
            self.empty_where_recorded()
            self.end()
        except Departure as departure:
            difference = Difference(self.actions, self.recorded(), str(departure))
        return Comparison(
            actions=self.actions,
            allocations=self.allocations,
            driver_calls=self.driver.answered,
            difference=difference,
            stats=self.allocator.stats,
        )

    def recorded(self) -> str:
        """What the history has where the model departs."""
        if self.driver.expected:
            return str(self.driver.expected[0])
        if self.actions < len(self.history.entries):
            return str(self.history.entries[self.actions])
        return f"the end with {len(self.history.segments)} segments"

    def act(self, entry: Entry) -> None:
        if entry.action in DRIVER_ACTIONS:
            self.driver.expected.append(entry)
        elif entry.action == "alloc":
            self.allocate(entry)
        elif entry.action == "oom":
            self.die(entry)
        else:
            self.empty_where_recorded()
            if entry.action == "free_completed":
                self.free(entry)

    def allocate(self, entry: Entry) -> None:
        """A request; memory given back before it without need says that the cache was emptied first."""
        if self.driver.gives_back_first() and self.allocator.fits(entry.nbytes):
            self.allocator.empty_cache()
        try:
            block = self.allocator.malloc(entry.nbytes)
        except OutOfMemory:
            raise Departure("out of memory") from None
        if block.address != entry.address or self.driver.expected:
            raise Departure(str(Entry("alloc", block.address, entry.nbytes)))
        self.live[block.address] = block
        self.allocations += 1

    def die(self, entry: Entry) -> None:
        self.driver.expected.append(entry)
        try:
            block = self.allocator.malloc(entry.nbytes)
        except OutOfMemory:
            self.driver.expected.popleft()
            return
        raise Departure(str(Entry("alloc", block.address, entry.nbytes)))

    def free(self, entry: Entry) -> None:
        block = self.live.pop(entry.address, None)
        if block is None or block.requested != entry.nbytes:
            raise Departure("no such block")
        self.allocator.free(block)

    def empty_where_recorded(self) -> None:
        """Memory given back where no request stands for it: the cache was emptied."""
        if self.driver.expected:
            self.allocator.empty_cache()
        if self.driver.expected:
            raise Departure("nothing more to give back")

    def end(self) -> None:
        """Compare the segments at the end, block by block."""
        modelled = self.allocator.snapshot()
        for recorded, ours in zip(self.history.segments, modelled, strict=False):
            if recorded != ours:
                raise Departure(f"the end with {ours} in place of {recorded}")
        if len(self.history.segments) != len(modelled):
            raise Departure(f"the end with {len(modelled)} segments")


def compare(history: History, *, device_bytes: int | None = None) -> Comparison:
    """Replay a history with the real addresses until its end or the first difference.

    ``device_bytes`` is the memory of the device that it was recorded on, needed where the settings have a
    memory fraction or where expandable segments ran out of memory. Raises ``UnsupportedError`` where the
    history's beginning cannot be found (see ``beginning``).

    A cache that the user emptied right before a request that needed new memory looks like a retry of that
    request, and counts as one in ``stats.retries``; under ``max_split_size_mb`` or garbage collection, where
    a retry gives back in another order, it may show as a difference.
    """
    return _Replayed(history, device_bytes).run()
