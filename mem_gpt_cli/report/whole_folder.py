"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError


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
        UsageError: if something is there already, or nothing can be made there.
        EnvironmentUnavailableError: if the disk does not take what the block writes: it is full, say.
    """
    refuse_taken(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        with onto_the_disk(folder):
            yield partial
            _open_to_others(partial)
            _sync_all(partial)
            partial.rename(folder)
            sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def onto_the_disk(path: Path) -> Iterator[None]:
    """While ``path`` is written: a disk that does not take it is one sentence, whoever found out.

    Raises:
        EnvironmentUnavailableError: in place of an ``OSError``, or of what torch and safetensors make of one.
    """
    try:
        yield
    except Exception as error:
        why = _refusal_of_the_disk(error)
        if why is None:
            raise
        raise EnvironmentUnavailableError(
            f"{path} cannot be written: {why}: see that its disk has room"
        ) from error


def _refusal_of_the_disk(error: BaseException) -> str | None:
    """Why the disk took no more, if that is what went wrong.

    ``torch.save`` keeps an ``OSError`` as the context of a plain ``RuntimeError`` (inline_container.cc);
    ``safetensors`` has words alone, and its class is not imported for them.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    words = str(error)
    if type(error).__name__ == "SafetensorError" and "while serializing" in words:
        return words.rpartition("I/O error: ")[2]
    if isinstance(error, RuntimeError) and "inline_container" in words:
        known = error.__context__ and _refusal_of_the_disk(error.__context__)
        return known or "torch could not write all of it"
    return None


def _open_to_others(folder: Path) -> None:
    """Give files and folders the modes that they have when a program simply makes them: ``mkdtemp`` and
    safetensors make theirs for their owner alone."""
    probe = folder / ".mode"  # the umask, which cannot be asked for without changing it for other threads
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode | (mode & 0o444) >> 2 if path.is_dir() else mode)


def _sync_all(folder: Path) -> None:
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
