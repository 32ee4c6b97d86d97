"""The prompts of ``memgpt generate``: from flags, from a JSON Lines file, from stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import UsageError, UsageErrors, reading

STDIN = "-"


@dataclass(frozen=True)
class Asked:
    """One prompt and its place among all; ``id`` is the user's own name for it, if there is one."""

    index: int
    text: str
    id: Any = None


def asked_prompts(texts: Sequence[str], file: str | None) -> list[Asked]:
    """The prompts that the flags give: texts, or a file with one a line; ``-`` is stdin in either.

    Raises:
        UsageError: for none, for both, for an empty one.
        UsageErrors: for lines that are no prompts, each with its place.
    """
    if texts and file is not None:
        raise UsageError("--prompt and --prompts are both given: leave one out")
    if file is not None:
        return _read(file)
    if not texts:
        raise UsageError("nothing to go on from: give --prompt TEXT, or --prompts FILE.jsonl")
    if texts.count(STDIN) > 1:
        raise UsageError("--prompt - is given twice, and stdin can be read once: leave one out")
    found = [sys.stdin.read().removesuffix("\n") if text == STDIN else text for text in texts]
    for text in found:
        if not text:
            raise UsageError("--prompt is empty: write some text")
    return [Asked(index, text) for index, text in enumerate(found)]


def _read(file: str) -> list[Asked]:
    if file == STDIN:
        return _parse(sys.stdin, "stdin")
    with reading(file, "--prompts"), Path(file).open(encoding="utf-8") as lines:
        return _parse(lines, file)


def _parse(lines: Iterable[str], name: str) -> list[Asked]:
    found: list[Asked] = []
    bad: list[UsageError] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text, own = _prompt_of(line, f"{name}:{number}")
        except UsageError as error:
            bad.append(error)
        else:
            found.append(Asked(len(found), text, own))
    if bad:
        raise UsageErrors(bad)
    if not found:
        raise UsageError(f'{name} holds no prompt: write one a line, such as {{"prompt": "Hello"}}')
    return found


def _prompt_of(line: str, place: str) -> tuple[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{place}: is no JSON: {error.msg} in column {error.colno}") from None
    own = value.get("id") if isinstance(value, dict) else None
    text = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise UsageError(f'{place}: holds no prompt: write {{"prompt": "text"}}, or a text in quotes')
    if not text:
        raise UsageError(f"{place}: the prompt is empty: write some text")
    return text, own
