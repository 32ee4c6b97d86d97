"""How far a measurement has come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from mem_gpt_cli.workload import Observer

Progress = Callable[[str, int, int, int | None], None]
"""Called at the beginning of each step as ``(phase, step, steps, live_bytes)``.

``step`` counts from 1 to ``steps`` over all passes; ``live_bytes`` is what tensors hold, ``None`` where
nobody counts.
"""


class Ticker:
    """Counts the steps of all passes and reports each."""

    def __init__(self, progress: Progress | None, steps: int) -> None:
        self._progress = progress
        self._steps = steps
        self._step = 0

    def tick(self, phase: str, live_bytes: int | None) -> None:
        """One more step begins."""
        self._step += 1
        if self._progress is not None:
            self._progress(phase, self._step, self._steps, live_bytes)

    def show(self, phase: str) -> None:
        """What goes on after the last step."""
        if self._progress is not None:
            self._progress(phase, self._steps, self._steps, None)


class Ticking:
    """An observer that reports each phase before another observer hears of it."""

    def __init__(self, observer: Observer, ticker: Ticker, live: Callable[[], int | None]) -> None:
        self._observer = observer
        self._ticker = ticker
        self._live = live

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Report, then pass on."""
        self._ticker.tick(name, self._live())
        with self._observer.phase(name):
            yield

    def mark(self, component: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """Pass on."""
        self._observer.mark(component, tensors)
