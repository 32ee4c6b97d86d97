"""Pydantic's findings as sentences with a position and the nearest right answer."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mem_gpt_cli.errors import Position, RecipeError, RecipeErrors
from mem_gpt_cli.recipe.document import KeyPath, Node, dotted
from mem_gpt_cli.recipe.schema import ContradictionError, Recipe, Section

_NEGATIONS = ("no", "off", "false", "null", "~", "n", "disabled", "")
_YES = ("yes", "on", "y", "true", "True", "1")


def validate(tree: Node, noted: Iterable[RecipeError] = ()) -> Recipe:
    """The recipe of a tree.

    Raises:
        RecipeError: where one thing is wrong, ``noted`` (what the reading found) included.
        RecipeErrors: where several are, in the order of the text.
    """
    errors = list(noted)
    try:
        recipe = Recipe.model_validate(tree.plain())
    except ValidationError as found:
        # A value that could not even be read stands as null in the tree: one sentence on it is enough.
        unread = {error.position for error in errors if error.position}
        translated = [_translate(detail, tree) for detail in found.errors(include_url=False)]
        raise combined([*errors, *(error for error in translated if error.position not in unread)]) from None
    if errors:
        raise combined(errors)
    return recipe.read_from(tree)


def combined(errors: Iterable[RecipeError]) -> RecipeError:
    """One error as it is; several, without repetitions, sorted by their place in each text."""
    unique = list({str(error): error for error in errors}.values())
    if len(unique) == 1:
        return unique[0]
    sources = list(dict.fromkeys(error.position.source if error.position else "" for error in unique))

    def place(error: RecipeError) -> tuple[int, int, int]:
        at = error.position
        return (sources.index(at.source), at.line, at.column) if at else (sources.index(""), 0, 0)

    return RecipeErrors(sorted(unique, key=place))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the nearest known word, or nothing."""
    near = nearest(word, known)
    return f", did you mean {near!r}?" if near else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` is most like, if any is like it at all; case does not count."""
    from difflib import get_close_matches  # here, because only errors need it

    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def without_none(annotation: Any) -> Any:
    """``X`` of ``X | None``; anything else as it is."""
    if get_origin(annotation) in (Union, types.UnionType):
        kept = [part for part in get_args(annotation) if part is not type(None)]
        return kept[0] if len(kept) == 1 else annotation
    return annotation


@cache
def section_at(path: tuple[str, ...]) -> type[Section] | None:
    """The section that a path of names leads to; the empty path leads to the recipe.

    In a mapping or a list of sections every name and number leads to one: ``("quantization", "overrides",
    "head")`` to an override.
    """
    annotation: Any = Recipe
    for name in path:
        if get_origin(annotation) in (dict, list):
            annotation = get_args(annotation)[-1]
            continue
        info = annotation.model_fields.get(name) if _is_section(annotation) else None
        annotation = without_none(info.annotation) if info else None
    return annotation if _is_section(annotation) else None


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


@cache
def leaves() -> tuple[tuple[str, ...], ...]:
    """Every key that holds a value, as a path: ``("workload", "batch")`` and the like."""

    def below(path: tuple[str, ...]) -> list[tuple[str, ...]]:
        section = section_at(path)
        return (
            [path]
            if section is None
            else [leaf for name in section.model_fields for leaf in below((*path, name))]
        )

    return tuple(below(()))


def _translate(detail: ErrorDetails, tree: Node) -> RecipeError:
    path: KeyPath = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return unknown_key(path, tree)
    reason = detail.get("ctx", {}).get("error")
    if isinstance(reason, ContradictionError):
        path = next((p for p in reason.paths if tree.at(p) is not None), reason.paths[0])
        return RecipeError(f"{dotted(path)}: {reason}", position_of(path, tree))
    return RecipeError(f"{dotted(path) or 'the recipe'}: {_sentence(detail, path)}", position_of(path, tree))


def position_of(path: KeyPath, tree: Node, *, key: bool = False) -> Position | None:
    """Where the value (or the key) at ``path`` stands, or the nearest one around it that stands anywhere."""
    nodes = list(tree.along(path))
    if key and len(nodes) == len(path) + 1 and nodes[-1].key_position:
        return nodes[-1].key_position
    return next((node.position for node in reversed(nodes) if node.position), None)


def unknown_key(path: KeyPath, tree: Node) -> RecipeError:
    """The error for a key that its section does not know, with the key that was probably meant."""
    *around, name = (str(step) for step in path)
    section = section_at(tuple(around))
    known = list(section.model_fields) if section else []
    elsewhere = [".".join(leaf) for leaf in leaves() if leaf[-1] == name and len(leaf) > 1]
    near = nearest(name, known)
    if around and name in Recipe.model_fields:
        hint = ": belongs at the top level, indented less"
    elif "." in name:
        first, _, rest = name.partition(".")
        hint = f": keys nest in a file, write `{rest}` below `{first}:`"
    elif elsewhere:
        hint = f", did you mean {' or '.join(elsewhere)}?"
    elif near:
        hint = f", did you mean {dotted((*path[:-1], near))}?"
    else:
        # At the top level nobody has chosen a section yet; inside one, a key merely alike elsewhere misleads.
        by_name = {leaf[-1]: ".".join(leaf) for leaf in reversed(leaves()) if len(leaf) > 1}
        far = None if around else nearest(name, by_name)
        hint = f", did you mean {by_name[far]}?" if far else f"; known here: {', '.join(known)}"
    return RecipeError(f"{dotted(path)}: unknown key{hint}", position_of(path, tree, key=True))


def shown(value: Any) -> str:
    """A value as a recipe would show it, cut short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:56] + "...'"


def _sentence(detail: ErrorDetails, path: KeyPath) -> str:
    kind, value, limits = detail["type"], detail["input"], detail.get("ctx", {})
    match kind:
        case "literal_error":
            return _enumeration(value, _choices(path))
        case "model_type":
            return _section_expected(value, path)
        case "int_type":
            return f"must be a whole number, not {shown(value)}{_number_hint(value)}"
        case "float_type":
            return f"must be a number, not {shown(value)}{_number_hint(value)}"
        case "bool_type":
            return f"must be true or false, not {shown(value)}{_truth_hint(value)}"
        case "string_type":
            quote = f": quote it as '{shown(value)}'" if isinstance(value, int | float) else ""
            return f"must be text, not {shown(value)}{quote}"
        case "list_type":
            hint = f": write [{value}]" if isinstance(value, str | int | float) else ""
            return f"must be a list, not {shown(value)}{hint}"
        case "dict_type":
            return f"must be a mapping of keys to values, not {shown(value)}"
        case "greater_than":
            return f"must be greater than {limits['gt']:g}, not {shown(value)}"
        case "greater_than_equal":
            return f"must be at least {limits['ge']:g}, not {shown(value)}"
        case "less_than_equal":
            return f"must be at most {limits['le']:,}, not {shown(value)}"
        case "string_too_short":
            return "is empty: write a name"
        case "too_short":
            return "is empty: give it at least one value"
        case "less_than":
            return f"must be less than {limits['lt']:g}, not {shown(value)}"
        case "value_error":
            return str(limits["error"])
        case _:
            return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {shown(value)}"


def _choices(path: KeyPath) -> list[str]:
    section = section_at(tuple(str(step) for step in path[:-1]))
    annotation = without_none(section.model_fields[str(path[-1])].annotation) if section else None
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


def _enumeration(value: Any, choices: list[str]) -> str:
    text = f"{shown(value)} is not one of {', '.join(choices)}"
    negative = value is None or value is False or (isinstance(value, str) and value.lower() in _NEGATIONS)
    if negative and "none" in choices:
        return f"{text}: write none"
    return text + (did_you_mean(value, choices) if isinstance(value, str) else "")


def _section_expected(value: Any, path: KeyPath) -> str:
    section = section_at(tuple(str(step) for step in path)) or Recipe
    keys = ", ".join(section.model_fields)
    if value is None:
        return f"is empty: delete it, or give it one of its keys ({keys})"
    negative = value is False or (isinstance(value, str) and value.lower() in _NEGATIONS)
    first = next(iter(section.model_fields))
    choices = _choices((*path, first))
    example = "none" if negative and "none" in choices else value
    fits = example in choices or (not choices and first == "name" and isinstance(value, str))
    wants_defaults = value is True or (isinstance(value, str) and value in _YES)
    hint = f": write {{{first}: {example}}}" if path and fits else ": write {}" if wants_defaults else ""
    return f"must be a mapping (its keys: {keys}), not {shown(value)}{hint}"


def _number_hint(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return f": write {int(value)}"
    try:
        number = float(value.replace("_", "").replace(",", "")) if isinstance(value, str) else None
    except ValueError:
        return ""
    if number is None or not math.isfinite(number):
        return "" if number is None else ": write a finite one"
    return f": write {number:g}" if number % 1 else f": write {int(number)}"


def _truth_hint(value: Any) -> str:
    word = str(value).lower()
    return ": write true" if word in _YES else ": write false" if word in (*_NEGATIONS, "0") else ""
