"""Checkpoints that are whole or not there, whenever the process dies.

A checkpoint is written into a hidden folder, seen onto the disk file by file, and renamed. Its manifest lists
every file with its SHA-256, so that one that was damaged since is passed over as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
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
        take_away(path)  # one that was passed over, or the run would have gone on from it
        with whole_folder(path) as partial:
            fill(partial)
            digests = {file.name: _digest(file) for file in sorted(partial.iterdir())}
            (partial / _MANIFEST).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
        here = self._newest_first()
        at = here.index(path)
        for old in (*here[:at], *here[at + self._keep :]):  # newer ones were passed over too
            take_away(old)

    def newest(self, note: Callable[[str], None]) -> Path | None:
        """The newest one that is whole; ``None`` where there is none.

        Args:
            note: told of each one that is newer and damaged.
        """
        for path in self._newest_first():
            if is_whole(path):
                return path
            note(f"{path} was damaged, and is passed over")
        return None

    def clear(self) -> None:
        """Take away what a killed process left unfinished."""
        clear_hidden(self._folder, _PREFIX)

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_PREFIX}*"), reverse=True)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint holds every file as it was written; all of it is read for that."""
    try:
        digests = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        return bool(digests) and all(_digest(path / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
