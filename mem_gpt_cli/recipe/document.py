"""YAML text into a tree in which every key and every value knows where it stands.

The text is read by the core rules of YAML 1.2 (section 10.3.2 of its specification), not by PyYAML's 1.1:
``1e-4`` is a number, ``no``, ``off`` and ``12:30`` are text, ``010`` is ten. Equal keys in one mapping are
errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from mem_gpt_cli.errors import Position, RecipeError

KeyPath = tuple[str | int, ...]

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 100_000
"""Aliases can make a short text expand without end; no recipe comes near these limits."""


@dataclass(frozen=True)
class Node:
    """A value (scalar, list of nodes, mapping of names to nodes), where it stands, and where its key does."""

    content: Any
    position: Position | None = field(default=None, compare=False)
    key_position: Position | None = field(default=None, compare=False)

    @classmethod
    def of(cls, value: Any, position: Position | None = None) -> Node:
        """The tree of a plain value, all of it at one position."""
        if isinstance(value, Mapping):
            content: Any = {str(key): cls.of(item, position) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            content = [cls.of(item, position) for item in value]
        else:
            content = value
        return cls(content, position, position)

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.content, dict):
            return {key: node.plain() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        return self.content

    def along(self, path: KeyPath) -> Iterator[Node]:
        """The nodes on the way to ``path``, this one first, as far as they exist."""
        yield self
        node = self
        for step in path:
            found = node._child(step)
            if found is None:
                return
            node = found
            yield node

    def at(self, path: KeyPath) -> Node | None:
        """The node at ``path``, or ``None``."""
        nodes = list(self.along(path))
        return nodes[-1] if len(nodes) == len(path) + 1 else None

    def merged(self, top: Node) -> Node:
        """This tree with ``top`` laid over it: mappings key by key, everything else replaced."""
        if not (isinstance(self.content, dict) and isinstance(top.content, dict)):
            return top
        content = dict(self.content)
        for key, node in top.content.items():
            content[key] = content[key].merged(node) if key in content else node
        return replace(self, content=content)

    def _child(self, step: str | int) -> Node | None:
        if isinstance(self.content, dict):
            return self.content.get(step)
        if isinstance(self.content, list) and isinstance(step, int) and 0 <= step < len(self.content):
            node: Node = self.content[step]
            return node
        return None


def dotted(path: KeyPath) -> str:
    """``("sweep", "cells", 0)`` as ``sweep.cells[0]``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def parse(text: str, source: str, *, column: int = 1) -> tuple[Node, list[RecipeError]]:
    """The tree of a YAML text that starts in ``column``, and what is wrong but can be read past.

    Raises:
        RecipeError: for a text that is not YAML, or that nests or expands beyond reason.
    """
    reader = _Reader(source, column)
    loader = None
    try:
        loader = _CoreLoader(text)
        composed = loader.get_single_node()
        if composed is None:
            return Node(None, Position(source, 1, column)), []
        return reader.read(composed, (), None), reader.errors
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, reader) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        at = Position(source, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise RecipeError(f"the character U+{error.character:04X} is not allowed in YAML", at) from None
    except RecursionError:
        raise RecipeError(f"nested more than {MAX_DEPTH} levels deep", Position(source, 1, column)) from None
    finally:
        if loader is not None:
            loader.dispose()


_TAG = "tag:yaml.org,2002:"
_CORE = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)
"""Which plain texts are no text: the tag, the pattern, and the characters that it may start with."""


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's reader with the tags of the YAML 1.2 core schema alone, and merge keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


def add_core_resolvers(target: type[yaml.SafeLoader] | type[yaml.SafeDumper]) -> None:
    """Let a loader read, or a dumper quote, what the YAML 1.2 core schema takes for more than text."""
    for name, pattern, first in _CORE:
        target.add_implicit_resolver(
            _TAG + name, re.compile(rf"(?:{pattern})\Z"), [*first, *([""] if name == "null" else [])]
        )


add_core_resolvers(_CoreLoader)


def _integer(text: str) -> int:
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


def _float(text: str) -> float:
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(value):
        raise OverflowError(f"{text[:40]!r} is not a finite number")
    return value


_SCALARS: dict[str, Callable[[str], Any]] = {
    _TAG + "null": lambda _: None,
    _TAG + "bool": lambda text: {"true": True, "false": False}[text.lower()],
    _TAG + "int": _integer,
    _TAG + "float": _float,
    _TAG + "str": str,
}


class _Reader:
    """Turns PyYAML's nodes into ours, and notes what is wrong on the way."""

    def __init__(self, source: str, column: int) -> None:
        self.source = source
        self.column = column
        self.count = 0
        self.errors: list[RecipeError] = []

    def position(self, mark: yaml.Mark) -> Position:
        return Position(self.source, mark.line + 1, mark.column + (self.column if mark.line == 0 else 1))

    def read(self, node: yaml.Node, path: KeyPath, key_position: Position | None) -> Node:
        position = self.position(node.start_mark)
        self.count += 1
        if len(path) > MAX_DEPTH:
            raise RecipeError(f"nested more than {MAX_DEPTH} levels deep", position)
        if self.count > MAX_NODES:
            raise RecipeError(f"expands to more than {MAX_NODES:,} values", position)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Node(self._mapping(node, path), position, key_position)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            items = [self.read(item, (*path, index), None) for index, item in enumerate(node.value)]
            return Node(items, position, key_position)
        return Node(self._scalar(node, path, position), position, key_position)

    def _scalar(self, node: yaml.Node, path: KeyPath, position: Position) -> Any:
        construct = _SCALARS.get(node.tag) if isinstance(node, yaml.ScalarNode) else None
        if construct is None:
            self._note(path, f"the tag {node.tag.replace(_TAG, '!!')!r} is not allowed in a recipe", position)
            return None
        try:
            return construct(node.value)
        except OverflowError as error:
            self._note(path, str(error), position)
        except (ValueError, KeyError):  # an explicit tag over a text that it does not fit, or too many digits
            self._note(path, f"{node.value[:40]!r} is no {node.tag.removeprefix(_TAG)}", position)
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key, value in node.value:
            position = self.position(key.start_mark)
            if key.tag == _TAG + "merge":
                merged = self._merge(value, path, position) | merged
            elif not isinstance(key, yaml.ScalarNode):
                self._note(path, "a key must be text, not a list or a mapping", position)
            elif key.tag != _TAG + "str":
                self._note(path, f"a key must be text: write '{key.value}' in quotes", position)
            elif key.value in own:
                first = own[key.value].key_position
                line = first.line if first else "?"
                self._note((*path, key.value), f"stands twice, first in line {line}: delete one", position)
            else:
                own[key.value] = self.read(value, (*path, key.value), position)
        return merged | own

    def _merge(self, node: yaml.Node, path: KeyPath, position: Position) -> dict[str, Node]:
        """The mapping that ``<<: *anchor`` or ``<<: [*first, *second]`` brings; the first of several wins."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        content: dict[str, Node] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self._note(path, "'<<' merges a mapping or a list of mappings", position)
                continue
            found = self.read(source, (*path, "<<"), position).content
            content = found | content
        return content

    def _note(self, path: KeyPath, message: str, position: Position) -> None:
        key = dotted(path)
        self.errors.append(RecipeError(f"{key}: {message}" if key else message, position))


_HINTS = (
    ("'\\t'", "a tab cannot indent in YAML: use spaces"),
    ("mapping values are not allowed here", "a second 'key: value' cannot follow in the same line: "
     "put it on a line of its own, indented below its section"),
    ("could not find expected ':'", "this line is no 'key: value': a colon and a space are missing"),
    ("found undefined alias", "this alias has no anchor"),
    ("expected a single document", "a recipe is one YAML document: delete what follows '---'"),
    ("but found another document", "a recipe is one YAML document: delete what follows '---'"),
)  # fmt: skip


def _syntax_error(error: yaml.MarkedYAMLError, reader: _Reader) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    position = reader.position(mark) if mark else Position(reader.source, 1, reader.column)
    problem = " ".join(part for part in (error.context, error.problem) if part)
    hint = next((text for sign, text in _HINTS if sign in problem), None)
    return RecipeError(f"not YAML: {hint or problem}", position)
