"""Figures that only a glance now and then can tell: read at a steady pace beside the run.

A thread reads every gauge at each tick and sleeps until the next. What is kept of memory are the highest
readings, of the run and of the stretch that runs at the time; readings of memory are never added up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from types import TracebackType

from mem_gpt_cli.devices.nvml import GpuLostError, Reading

Gauge = Callable[[], Reading]
INTERVAL_S = 0.010


class Figure:
    """What is known of one gauge: the readings' number, sum and maximum, and how the last one was got."""

    def __init__(self) -> None:
        self.count = 0
        self.highest: int | float | None = None
        self.last: Reading | None = None
        self._sum = 0.0

    @property
    def mean(self) -> float | None:
        """Mean of the readings, which is for rates alone."""
        return self._sum / self.count if self.count else None

    def note(self, reading: Reading) -> None:
        """Take a reading; one without a value only says why."""
        if reading.value is None:
            self.last = self.last or reading
            return
        self.count += 1
        self._sum += reading.value
        self.highest = reading.value if self.highest is None else max(self.highest, reading.value)
        self.last = reading


class Sampler:
    """Reads gauges by name, in a thread of its own, for as long as it is entered.

    Args:
        gauges: what to read.
        interval_s: time between two ticks in seconds; ticks that a slow reading missed are left out.

    Attributes:
        figures: what is known of each gauge over the whole run.
        lost: why nothing more was read, where the GPU was lost on the way.
    """

    def __init__(self, gauges: Mapping[str, Gauge], interval_s: float = INTERVAL_S) -> None:
        self.figures = {name: Figure() for name in gauges}
        self.lost: str | None = None
        self.ticks = 0
        self._gauges = gauges
        self._interval_s = interval_s
        self._stretch: Mapping[str, Figure] = {}
        self._noting = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memgpt-sampler", daemon=True)
        self._first_s = self._last_s = 0.0
        self._failure: Exception | None = None

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    @property
    def interval_s(self) -> float | None:
        """Mean time between two ticks that was achieved; ``None`` for fewer than two."""
        return (self._last_s - self._first_s) / (self.ticks - 1) if self.ticks > 1 else None

    def begin(self) -> None:
        """A stretch begins: what is read from now on is also kept for it."""
        self._stretch = {name: Figure() for name in self.figures}

    def end(self, names: Iterable[str]) -> Mapping[str, Figure]:
        """What was read in the stretch, by gauge; those in ``names`` are read once more before it is over.

        So a stretch shorter than a tick has a reading too, and memory that only grows its highest one.
        """
        self._sample(names)
        found, self._stretch = self._stretch, {}
        return found

    def _run(self) -> None:
        begin = perf_counter()
        while not self._stopped.is_set() and self.lost is None:
            self._last_s = perf_counter()
            self._first_s = self._first_s or self._last_s
            self.ticks += 1
            try:
                self._sample(self._gauges)
            except Exception as error:  # a bug, which the thread that waits for this one shall raise
                self._failure = error
                return
            since = (perf_counter() - begin) % self._interval_s
            self._stopped.wait(self._interval_s - since)

    def _sample(self, names: Iterable[str]) -> None:
        stretch = self._stretch
        for name in names:
            if self.lost is not None:
                return
            try:
                reading = self._gauges[name]()
            except GpuLostError as error:
                self.lost = str(error)
                return
            with self._noting:
                self.figures[name].note(reading)
                if name in stretch:
                    stretch[name].note(reading)
