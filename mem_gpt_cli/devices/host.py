"""How much of this machine's memory is left."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def host_bytes_left() -> int | None:
    """Bytes that a process can still take before memory runs out; ``None`` where nothing tells."""
    known = [count for count in (_left_of_the_system(), _left_of_the_container()) if count is not None]
    return min(known, default=None)


def _left_of_the_system() -> int | None:
    try:
        return _numbers(_MEMINFO)["MemAvailable:"] * 1024
    except (OSError, KeyError):
        return None


def _left_of_the_container() -> int | None:
    """The kernel's cgroup v2 account: ``MemAvailable`` knows nothing of a container's limit.

    Files that were read a while ago count as used there, and give way to whoever needs the room.
    """
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        return max(0, limit - used + _numbers(_CGROUP / "memory.stat").get("inactive_file", 0))
    except (OSError, ValueError):  # no such cgroup, or no limit: "max"
        return None


def _numbers(path: Path) -> dict[str, int]:
    """A file of a name and a number a line."""
    return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}
