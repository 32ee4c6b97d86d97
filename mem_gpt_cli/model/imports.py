"""Packages that are installed but do not load, and those that say too much when they do."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mem_gpt_cli.errors import EnvironmentUnavailableError


@contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """Without the remarks that packages log at their import, of kernels for other machines."""
    loggers = [logging.getLogger(package) for package in packages]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


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
