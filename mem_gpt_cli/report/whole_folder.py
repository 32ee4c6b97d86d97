"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from mem_gpt_cli.errors import UsageError


def refuse_taken(folder: Path) -> None:
    """Pass a path where nothing would be written over: there is nothing, or an empty folder.

    Raises:
        UsageError: if something is there.
    """
    if folder.is_dir() and not folder.is_symlink():
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: name another folder")
    elif folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} is there already: name another folder")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder`` to write into, which gets its name when all is on the disk.

    If the block raises, or is interrupted, nothing is left of it; a process that is killed leaves the hidden
    folder alone.

    Raises:
        UsageError: if something is there already, or nothing can be written there.
    """
    refuse_taken(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        yield partial
        _onto_the_disk(partial)
        partial.chmod(0o755)  # that of ``mkdtemp`` is for its maker alone
        partial.rename(folder)
        sync(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _onto_the_disk(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """See a file, or the names in a folder, onto the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
