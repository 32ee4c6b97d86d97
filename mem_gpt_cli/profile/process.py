"""The memory of this process as Linux counts it: the peak resident set since it was last reset."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class ProcessPeak:
    """``VmHWM`` of one stretch of the run; see proc_pid_clear_refs(5) and proc_pid_status(5)."""

    def __init__(self) -> None:
        self._fresh = False

    def reset(self) -> None:
        """Begin a new stretch; containers may refuse it."""
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
            self._fresh = True
        except OSError:
            self._fresh = False

    def read(self) -> int | None:
        """Peak resident bytes since ``reset``; ``None`` where the system does not tell them."""
        return _high_water_mark() if self._fresh else None


def _high_water_mark() -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            kibibytes = line.split()[1]
            return int(kibibytes) * 1024
    return None
