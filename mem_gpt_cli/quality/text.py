"""The text that is scored: the one that ships, a file, or a folder of files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mem_gpt_cli.errors import UsageError, reading
from mem_gpt_cli.model import tiny

SAMPLE = "sample"
_CHARACTERS_A_TOKEN = 8
"""What is read of a stretch first: English has four or five characters a token in most vocabularies."""


def check_text(name: str) -> None:
    """Pass a name that leads to a text.

    Raises:
        UsageError: if nothing is there, or a folder holds no ``.txt``.
    """
    if name != SAMPLE:
        _files(name)


def read_text(name: str) -> str:
    """The whole text; the files of a folder in the order of their names.

    ``sample`` is six addresses of US presidents, 247 kB, in the public domain: those that memgpt-tiny was
    not trained on.

    Raises:
        UsageError: if it cannot be read.
    """
    if name == SAMPLE:
        return "\n\n".join(sample_texts())
    with reading(name, "quality.text"):
        return "\n\n".join(path.read_text(encoding="utf-8") for path in _files(name))


def sample_texts() -> list[str]:
    """The addresses of the sample, one by one."""
    with gzip.open(tiny.folder() / "held_out.json.gz", "rt", encoding="utf-8") as file:
        return [str(text) for text in json.load(file)]


def _files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"quality.text: {name} does not exist: give a text file, a folder, or sample")
    found = sorted(path.rglob("*.txt"))
    if not found:
        raise UsageError(f"quality.text: {name} holds no .txt file: give a text file")
    return found


def windows_of(
    text: str, windows: int, tokens: int, tokenize: Callable[[str], Sequence[int]]
) -> list[list[int]]:
    """``windows`` stretches of ``tokens`` tokens, spread evenly over the text, at the same places for all.

    Each begins where a word does; so a window holds the same text whatever else is scored with it.

    Raises:
        UsageError: if the text is too short for them.
    """
    return [_window(text, number, windows, tokens, tokenize) for number in range(windows)]


def _window(
    text: str, number: int, windows: int, tokens: int, tokenize: Callable[[str], Sequence[int]]
) -> list[int]:
    start, end = (len(text) * edge // windows for edge in (number, number + 1))
    while 0 < start < end and not text[start - 1].isspace():
        start += 1
    for stop in (min(end, start + _CHARACTERS_A_TOKEN * tokens), end):
        found = list(tokenize(text[start:stop]))
        # The last token of a text that was cut may be half a word.
        if len(found) > tokens:
            return found[:tokens]
    raise UsageError(
        f"quality: the text is too short for {windows} windows of {tokens} tokens: "
        "lower quality.windows or quality.tokens, or give a longer text"
    )
