"""From a file, flags and overrides to a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import Position, RecipeError
from mem_gpt_cli.recipe import shipped
from mem_gpt_cli.recipe.document import MAX_BYTES, KeyPath, Node, parse
from mem_gpt_cli.recipe.problems import combined, did_you_mean, validate
from mem_gpt_cli.recipe.schema import QuantizationOverride, Recipe

_OPEN_KEYS = (("sweep", "axes"), ("sweep", "baseline"))
"""Mappings whose keys are dotted themselves: what follows them in an override is one key."""

_PATTERNS = ("quantization", "overrides")
"""A mapping of patterns, which may be dotted, to sections."""


def load_recipe(
    source: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a file or of a shipped recipe's name; ``None`` is the defaults.

    Args:
        source: path of a YAML file, or a name that ``memgpt recipes list`` shows.
        overrides: ``key=value`` texts with a dotted key and a YAML value, stronger than everything else.
        flags: dotted keys to values, stronger than the file; a value of ``None`` means not given.

    Raises:
        RecipeError: one thing is wrong; its message starts with file, line and column.
        RecipeErrors: several things are, in the order of the text.
    """
    tree, errors = (Node({}), []) if source is None else _read_chain(locate(source), ())
    for key, value in (flags or {}).items():
        if value is not None:
            position = Position(f"--{short_name(key).replace('_', '-')} {value}", 1, 1)
            tree = tree.merged(nested(split_key(key), Node.of(value, position)))
    for override in overrides:
        layer, found = _read_override(override)
        tree = tree.merged(layer)
        errors += found
    return validate(tree, errors)


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe of a mapping, as Python code writes it: dotted keys, or sections that are mappings.

    Args:
        values: keys to values; a value of ``None`` means not given.

    Raises:
        RecipeError: one thing is wrong.
        RecipeErrors: several things are.
    """
    tree = Node({})
    for key, value in values.items():
        if value is not None:
            tree = tree.merged(nested(split_key(str(key)), Node.of(value)))
    return validate(tree)


def locate(source: str | Path, beside: Path | None = None, at: Position | None = None) -> Path:
    """The file that a path or a shipped recipe's name stands for; ``beside`` is the folder of relative paths.

    Raises:
        RecipeError: there is none; ``at`` is where the name was written.
    """
    path = (beside or Path()) / os.path.expanduser(source)  # noqa: PTH111  (Path's raises on an unknown user)
    is_folder = os.path.isdir(path)  # noqa: PTH112  (Path's raises on a name that is too long)
    if os.path.exists(path) and not is_folder:  # noqa: PTH110
        return path
    names = shipped.by_name()
    if str(source) in names:
        return names[str(source)]
    key = "extends: " if at else ""
    if is_folder:
        raise RecipeError(f"{key}{path} is a folder, not a recipe: name a YAML file in it", at)
    name = Path(source).with_suffix("").name
    hint = did_you_mean(name, names) or "; `memgpt recipes list` shows the shipped ones"
    raise RecipeError(f"{key}{str(source)!r} is neither a file nor a shipped recipe{hint}", at)


def _read_chain(path: Path, below: tuple[Path, ...]) -> tuple[Node, list[RecipeError]]:
    """The tree of a file laid over those that it extends; ``below`` are the files that extend this one."""
    tree, errors = read_file(path)
    extends = tree.content.pop("extends", None)
    if extends is None:
        return tree, errors
    if not isinstance(extends.content, str):
        message = "extends: must be the path of one recipe file, or the name of a shipped recipe"
        return tree, [*errors, RecipeError(message, extends.position)]
    base_path = locate(extends.content, path.parent, extends.position)
    chain = (*below, path)
    loop = [step.resolve() for step in chain]
    if base_path.resolve() in loop:
        names = " -> ".join(step.name for step in (*chain[loop.index(base_path.resolve()) :], base_path))
        raise RecipeError(f"extends: recipes extend each other in a loop: {names}", extends.position)
    base, base_errors = _read_chain(base_path, chain)
    return base.merged(tree), base_errors + errors


def read_file(path: Path) -> tuple[Node, list[RecipeError]]:
    """The mapping in a recipe file, and what is wrong with it but can be read past.

    Raises:
        RecipeError: the file cannot be read, is no UTF-8 text or no YAML, or holds no mapping.
    """
    top = Position(str(path), 1, 1)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot be read: {(error.strerror or str(error)).lower()}", top) from None
    if len(content) > MAX_BYTES:
        raise RecipeError(f"is larger than {MAX_BYTES // 2**20} MiB, which no recipe is", top)
    if b"\0" in content:
        raise RecipeError("is a binary file, not a YAML text", top)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise RecipeError("is not UTF-8 text: save it as UTF-8", Position(str(path), line, column)) from None
    tree, errors = parse(text, str(path))
    if errors and not isinstance(tree.content, dict):
        raise combined(errors)
    if tree.content is None:
        raise RecipeError("is empty: a recipe holds at least one key, such as `task: inference`", top)
    if not isinstance(tree.content, dict):
        kind = "a list" if isinstance(tree.content, list) else "a single value"
        raise RecipeError(f"holds {kind}: a recipe is a mapping, such as `task: inference`", tree.position)
    return _long_forms(tree), errors


def _read_override(text: str) -> tuple[Node, list[RecipeError]]:
    source = f"--set {text}"
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        message = "an override is KEY=VALUE with a dotted key, e.g. workload.batch=4"
        raise RecipeError(message, Position(source, 1, 1))
    path = split_key(key.strip())
    if path == ("extends",):
        raise RecipeError("extends: only a recipe file can extend another", Position(source, 1, 1))
    node, errors = parse(value, source, column=len(key) + 2)
    named = [RecipeError(f"{key.strip()}: {error.message}", error.position) for error in errors]
    return nested(path, replace(node, key_position=Position(source, 1, 1))), named


def split_key(key: str) -> KeyPath:
    """The path of a dotted key; below ``sweep.axes`` and ``sweep.baseline`` the rest is one key, and below
    ``quantization.overrides`` it is a pattern, with what is set of it behind the last dot.
    """
    steps = tuple(key.split("."))
    if steps[:2] in _OPEN_KEYS and len(steps) > 2:
        return (*steps[:2], ".".join(steps[2:]))
    if steps[:2] == _PATTERNS and len(steps) > 3:
        end = len(steps) - (steps[-1] in QuantizationOverride.model_fields)
        return (*steps[:2], ".".join(steps[2:end]), *steps[end:])
    return steps


def short_name(key: str) -> str:
    """What people call a dotted key: its last part, or its section where the last part alone says nothing."""
    *around, last = key.split(".")
    return (
        around[-1] if around and last in ("name", "kind", "scheme", "backend", "policy", "memory") else last
    )


def nested(path: KeyPath, node: Node) -> Node:
    """The tree that holds ``node`` at ``path`` and nothing else."""
    tree = node
    for step in reversed(path):
        tree = Node({step: tree}, node.key_position or node.position, node.key_position)
    return _long_forms(tree)


def _long_forms(tree: Node) -> Node:
    """``device: cpu`` as ``device: {name: cpu}``, so that laid over a section it leaves the other keys."""
    device = tree.content.get("device") if isinstance(tree.content, dict) else None
    if device is None or not isinstance(device.content, str):
        return tree
    return replace(tree, content={**tree.content, "device": replace(device, content={"name": device})})
