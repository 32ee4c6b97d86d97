"""Checkpoints that are whole or not there, whenever the process dies.

A checkpoint is written into a hidden folder, seen onto the disk file by file, and renamed. Its manifest lists
every file with its size, so that one that was damaged since is passed over as well.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from mem_gpt_cli.report.whole_folder import onto_the_disk, sync, whole_folder

_PREFIX = "step-"
_MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of a run, the newest ``keep`` of them, in a folder that no other process writes to."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def write(self, step: int, fill: Callable[[Path], None]) -> None:
        """Have ``fill`` write a checkpoint into the folder that it is given, and let go of the oldest.

        Raises:
            EnvironmentUnavailableError: where the disk does not take it; the checkpoints before it stand.
        """
        path = self._folder / f"{_PREFIX}{step:08}"
        if not is_whole(path):
            take_away(path)
            with whole_folder(path) as partial:
                fill(partial)
                sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
                (partial / _MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
        for old in list(self._whole())[self._keep :]:
            take_away(old)

    def newest(self) -> Path | None:
        """The newest one that is whole; ``None`` where there is none."""
        return next(self._whole(), None)

    def clear(self) -> None:
        """Take away what a killed process left unfinished."""
        clear_hidden(self._folder, _PREFIX)

    def _whole(self) -> Iterator[Path]:
        """Those that are whole, the newest first."""
        for path in sorted(self._folder.glob(f"{_PREFIX}*"), reverse=True):
            if is_whole(path):
                yield path


def is_whole(path: Path) -> bool:
    """Whether a checkpoint holds every file in its full size."""
    try:
        sizes = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def take_away(path: Path) -> None:
    """Delete a folder, where there is one; hidden first, so that no half of it is ever under its name."""
    if path.is_dir():
        hidden = path.with_name(f".{path.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden)


def clear_hidden(folder: Path, name: str) -> None:
    """Take away what ``whole_folder`` and ``take_away`` leave of that name when they are killed."""
    for path in folder.glob(f".{name}*.*"):
        if path.is_dir():
            shutil.rmtree(path)


def write_file(path: Path, text: str) -> None:
    """Write a small file that is there as a whole or not at all.

    Raises:
        EnvironmentUnavailableError: where the disk does not take it; what was there before stands.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with onto_the_disk(path):
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
            sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
