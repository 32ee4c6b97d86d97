"""Ctrl-C between two steps: what was learnt is kept before the process ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop and did, after ``step`` of ``steps`` steps, all of them in a checkpoint."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"step {step} of {steps}")
        self.step, self.steps = step, steps


class Wish:
    """Whether somebody wants the run to stop."""

    def __init__(self) -> None:
        self.is_there = False
        self._before: dict[signal.Signals, Any] = {}

    def note(self, number: int, frame: Any) -> None:
        """A signal came; the next one of its kind ends the process at once, as it would without us."""
        del frame
        self.is_there = True
        signal.signal(number, self._before[signal.Signals(number)])

    @contextmanager
    def heard(self) -> Iterator[None]:
        """While it is entered, SIGINT and SIGTERM are noted, which Python does in its main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {one: signal.signal(one, self.note) for one in _SIGNALS}
        try:
            yield
        finally:
            for one, before in self._before.items():
                signal.signal(one, before)
