"""Where a command writes: data to stdout, words for people to stderr."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

WIDTH_OF_A_PIPE = 200
"""Columns where no terminal sets a limit: rich would cut tables down to 80."""


def data() -> Console:
    """The console of stdout."""
    return _console(stderr=False)


def people() -> Console:
    """The console of stderr: progress, warnings, advice."""
    return _console(stderr=True)


def warn(message: str) -> None:
    """Print one warning to stderr: wrapped at words to a terminal's width, one line where there is none."""
    out = people()
    out.print(f"[yellow]warning:[/] {_escaped(message)}", highlight=False, soft_wrap=not out.is_terminal)


def progress() -> Progress:
    """A bar on stderr, gone when the work is over; nothing at all where stderr is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    console = people()
    columns = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(bar_width=16), TimeElapsedColumn())
    now = TextColumn("{task.description}")
    return Progress(*columns, now, console=console, transient=True, disable=not console.is_terminal)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream.isatty()
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() and int(columns) > 0 else None
    if width is None and not is_terminal:
        width = WIDTH_OF_A_PIPE
    if width is None and os.environ.get("TERM") == "dumb":
        # rich takes every dumb terminal for 80 by 25; the kernel knows its real size.
        width = os.get_terminal_size(stream.fileno()).columns or None
    # rich ignores a width alone where TERM is dumb: it wants the height too.
    # Its table of emoji is large to import, and a `:name:` in a path or a key means itself.
    return Console(file=stream, width=width, height=25 if width else None, highlight=False, emoji=False)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
