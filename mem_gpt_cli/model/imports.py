"""Packages that are installed but do not load."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mem_gpt_cli.errors import EnvironmentUnavailableError


@contextmanager
def broken_packages_named() -> Iterator[None]:
    """Say which package an import failed in: transformers imports what is installed, needed or not.

    Raises:
        EnvironmentUnavailableError: in place of an ``ImportError``.
    """
    try:
        yield
    except ImportError as error:
        frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        package = next(
            (name.split(".")[0] for name in reversed(frames) if not name.startswith("importlib")), ""
        )
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise EnvironmentUnavailableError(
            f"{package} is installed but cannot be imported ({reason}): install it again, or uninstall it"
        ) from error
