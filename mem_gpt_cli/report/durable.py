"""Files that grow line by line and survive a killed writer and several writers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """The file, open for reading and appending and ours alone; it and its folder are made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # closing the file gives it back, also when the process dies
        yield file
    finally:
        os.close(file)


def whole_length(file: int, size: int, block: int = 65536) -> int:
    """Bytes until the end of the last whole line; what follows is a line that a killed writer left."""
    end = size
    while end > 0:
        start = max(0, end - block)
        at = os.pread(file, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def write(file: int, data: bytes) -> None:
    """Write all of it, and see it onto the disk."""
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)
