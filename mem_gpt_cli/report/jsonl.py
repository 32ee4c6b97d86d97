"""JSON Lines that survive a killed writer: one object a line, each on the disk before the next begins."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.report.durable import locked, whole_length, write


def line_of(value: Mapping[str, Any]) -> str:
    """An object as one line, without its end."""
    return json.dumps(value, ensure_ascii=False)


def append_object(path: Path, value: Mapping[str, Any]) -> None:
    """Append one object and see it onto the disk; a torn last line is taken away first.

    Raises:
        UsageError: if the file cannot be written.
    """
    try:
        with locked(path) as file:
            size = os.fstat(file).st_size
            whole = whole_length(file, size)
            if whole < size:
                os.ftruncate(file, whole)
            write(file, line_of(value).encode() + b"\n")
    except OSError as error:
        raise UsageError(f"cannot append to {path}: {error.strerror}") from error


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that ``append_object`` made; none where there is no file yet.

    Raises:
        UsageError: if the file cannot be read, or holds another kind of line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    found = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UsageError(f"{path}:{number}: is no JSON object: give another file, or mend the line")
        found.append(value)
    return found
