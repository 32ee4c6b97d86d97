"""What a model is trained on, as it is written: texts, prompts with their completions, and chats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mem_gpt_cli.errors import UsageError, UsageErrors, reading
from mem_gpt_cli.quality.text import SAMPLE, sample_texts
from mem_gpt_cli.recipe.schema import Recipe

DOCUMENT_END = "<|endoftext|>"
"""A line of a text file that ends a document: GPT-2's own mark."""
ASSISTANT = "assistant"
_MARK = re.compile(rf"^[^\S\n]*{re.escape(DOCUMENT_END)}[^\S\n]*(?:\n|\Z)", re.MULTILINE)
_LISTED = 20
"""Malformed lines that are named one by one."""
_KINDS = '{"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [...]}'


@dataclass(frozen=True)
class Text:
    """A plain text, all of it to be learnt."""

    text: str
    where: str


@dataclass(frozen=True)
class Completion:
    """A prompt, which is read, and what follows it, which is learnt."""

    prompt: str
    completion: str
    where: str


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """Turns of a conversation: what the assistant says is learnt, the rest is read."""

    messages: tuple[Message, ...]
    where: str


Document = Text | Completion | Chat


def read_documents(name: str, key: str) -> list[Document]:
    """The documents of a file, a folder, or ``sample``, in their order.

    A ``.jsonl`` holds one object a line; any other file is a text, which lines of ``<|endoftext|>`` split. Of
    a folder each ``.txt`` and ``.jsonl`` counts, in the order of their names.

    Args:
        name: the data.
        key: the recipe key that names it, for error messages.

    Raises:
        UsageError: for what is not there, cannot be read or is empty.
        UsageErrors: for malformed lines, each with file and line.
    """
    if name == SAMPLE:
        return [Text(text, f"{SAMPLE} {number}") for number, text in enumerate(sample_texts(), 1)]
    found: list[Document] = []
    wrong: list[UsageError] = []
    for path in _files(name, key):
        for one in _of_file(path, key):
            if isinstance(one, UsageError):
                wrong.append(one)
            else:
                found.append(one)
    if wrong:
        raise _together(wrong)
    if not found:
        raise UsageError(f"{key}: {name} is empty: give a file with some text in it")
    return found


def find_documents(recipe: Recipe) -> None:
    """Pass a recipe whose data is there, if it names any.

    Raises:
        UsageError: for data that is not, or a folder without any.
    """
    named = {"finetune.data": recipe.finetune.data, "finetune.held_out": recipe.finetune.held_out}
    for key, name in named.items():
        if name is not None and name != SAMPLE:
            _files(name, key)


def _files(name: str, key: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() == ".json":
            raise UsageError(f"{key}: {name} is JSON: write one object a line and name it .jsonl")
        return [path]
    if not path.is_dir():
        raise UsageError(f"{key}: {name} does not exist: give a text file, a .jsonl, a folder, or {SAMPLE}")
    kinds = (".txt", ".jsonl")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in kinds and file.is_file())
    if not found:
        raise UsageError(f"{key}: {name} holds no .txt and no .jsonl file: give a folder that does")
    return found


def _of_file(path: Path, key: str) -> Iterator[Document | UsageError]:
    with reading(str(path), key):
        text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".jsonl":
        yield from _of_lines(text.split("\n"), str(path))
    else:
        yield from _of_text(text, str(path))


def _of_text(text: str, where: str) -> Iterator[Text]:
    start, first = 0, 1
    for begins, ends in [*(mark.span() for mark in _MARK.finditer(text)), (len(text), len(text))]:
        document = text[start:begins].strip()
        if document:
            yield Text(document, f"{where}:{first}")
        first += text.count("\n", start, ends)
        start = ends


def _of_lines(lines: Iterable[str], where: str) -> Iterator[Document | UsageError]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield document_of(line, f"{where}:{number}")
            except UsageError as error:
                yield error


def document_of(line: str, where: str) -> Document:
    """The document of one JSON object.

    Raises:
        UsageError: for a line that is none; it says what is wrong, and how to mend it.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: is no JSON ({error}): write one object a line") from error
    except RecursionError as error:
        raise UsageError(f"{where}: is nested too deeply: write {_KINDS}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{where}: is {_named(value)}, not an object: write {_KINDS}")
    kinds = [kind for kind in ("text", "messages", "completion") if kind in value]
    if len(kinds) > 1:
        raise UsageError(
            f"{where}: has both {kinds[0]!r} and {kinds[1]!r}: keep the one that is to be learnt"
        )
    if "prompt" in value and kinds in (["text"], ["messages"]):
        raise UsageError(
            f"{where}: has both 'prompt' and {kinds[0]!r}: name what follows it 'completion', or take "
            "the prompt out"
        )
    if not kinds:
        raise UsageError(f"{where}: has no {'completion' if 'prompt' in value else 'text'}: write {_KINDS}")
    if kinds == ["messages"]:
        return Chat(tuple(_messages(value["messages"], where)), where)
    if kinds == ["text"]:
        return Text(_text(value, "text", where), where)
    return Completion(_text(value, "prompt", where), _text(value, "completion", where), where)


def _messages(value: Any, where: str) -> Iterator[Message]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: messages is no list of messages: write [{{'role': ..., 'content': ...}}]")
    for number, message in enumerate(value, 1):
        place = f"{where}: message {number}"
        if not isinstance(message, dict):
            raise UsageError(f"{place} is {_named(message)}, not an object with role and content")
        yield Message(_text(message, "role", place), _text(message, "content", place, may_be_empty=True))
    if not any(m["role"] == ASSISTANT and m["content"] for m in value):
        raise UsageError(f"{where}: nobody of role {ASSISTANT!r} says anything, so there is nothing to learn")


def _text(value: Mapping[str, Any], key: str, where: str, *, may_be_empty: bool = False) -> str:
    found = value.get(key)
    if key not in value:
        raise UsageError(f"{where}: has no {key!r}: add it")
    if not isinstance(found, str):
        raise UsageError(f"{where}: {key} is {_named(found)}: write a text")
    if not found and not may_be_empty:
        raise UsageError(f"{where}: {key} is empty: write some text, or take the line out")
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: {key} holds half a character (a lone surrogate): mend the text"
        ) from error
    return found


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _together(wrong: list[UsageError]) -> UsageErrors:
    listed = wrong[:_LISTED]
    if len(wrong) > len(listed):
        listed.append(UsageError(f"and {len(wrong) - len(listed)} more malformed lines"))
    return UsageErrors(listed)
