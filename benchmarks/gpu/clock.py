"""How much of the time is left, for the whole call and for each stage."""

from __future__ import annotations

from time import monotonic


class Clock:
    """Counts from the start of the call; ``limit_s`` is when it has to be over."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._start = monotonic()

    def left(self, share: float = 1.0) -> float:
        """Seconds until that share of the limit is used up; 0 once it is."""
        return max(0.0, self._start + share * self.limit_s - monotonic())
