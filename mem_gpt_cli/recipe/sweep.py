"""From a recipe with a sweep to its cells."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from mem_gpt_cli.errors import RecipeError, RecipeErrors
from mem_gpt_cli.recipe.document import KeyPath, Node, dotted
from mem_gpt_cli.recipe.loading import nested, short_name, split_key
from mem_gpt_cli.recipe.problems import (
    combined,
    leaves,
    position_of,
    section_at,
    shown,
    unknown_key,
    validate,
)
from mem_gpt_cli.recipe.schema import Claim, Recipe, Sweep
from mem_gpt_cli.recipe.writing import resolved

MAX_CELLS = 100_000


@dataclass(frozen=True)
class Cell:
    """One recipe of a sweep.

    ``values`` are what the sweep sets (dotted key to value), ``recipe`` is the whole recipe without the
    sweep, ``baseline`` the index of the cell that this one is compared with: its own for a baseline, ``None``
    where the sweep names none. ``claim`` is what ``sweep.claims`` says of it.
    """

    index: int
    values: dict[str, Any]
    recipe: Recipe
    baseline: int | None = field(default=None, kw_only=True)
    claim: Claim | None = field(default=None, kw_only=True)

    @property
    def key(self) -> str:
        """A short text for people, unique in its sweep: ``task=training seq=256``; ``-`` without a sweep."""
        return " ".join(f"{short_name(key)}={_text(value)}" for key, value in self.values.items()) or "-"

    @property
    def digest(self) -> str:
        """16 hex digits that stand for what is run: equal for equal resolved recipes, whatever their text."""
        from hashlib import sha256  # here, because every start would pay for it

        data = resolved(self.recipe)
        del data["description"]
        lengths = self.recipe.lengths  # what is left open runs the same as what is written out
        data["workload"] |= {"seq": lengths.seq, "prompt_tokens": lengths.prompt, "new_tokens": lengths.new}
        return sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def expand(recipe: Recipe) -> tuple[Cell, ...]:
    """The cells of a recipe's sweep, in the order that :class:`Sweep` describes; one cell without a sweep.

    Raises:
        RecipeError: a cell that is no valid recipe, a key that is swept twice, an exclusion or a baseline
            that fits no cell; the position is in the sweep.
        RecipeErrors: several of them.
    """
    if recipe.sweep is None:
        return (Cell(0, {}, recipe),)
    _check_keys(recipe, recipe.sweep)
    base = Node.of(recipe.model_dump(exclude={"sweep"}, exclude_unset=True))
    cells: list[Cell] = []
    errors: list[RecipeError] = []
    for settings in _kept(recipe):
        values = {key: node.plain() for key, node in settings.items()}
        try:
            cells.append(Cell(len(cells), values, _cell_recipe(base, settings, values)))
        except RecipeErrors as found:
            errors += found.errors
        except RecipeError as found:
            errors.append(found)
    if errors:
        raise combined(errors)
    _check_distinct(cells, recipe)
    return _with_claims(_with_baselines(cells, recipe), recipe)


class _Findings:
    """Collects what is wrong with a sweep, each with the position of its key."""

    def __init__(self, recipe: Recipe) -> None:
        self.text = recipe.text
        self.errors: list[RecipeError] = []

    def note(self, path: KeyPath, message: str) -> None:
        self.errors.append(RecipeError(f"{dotted(path)}: {message}", position_of(path, self.text, key=True)))

    def close(self) -> None:
        """Raise what was noted."""
        if self.errors:
            raise combined(self.errors)


def _check_keys(recipe: Recipe, sweep: Sweep) -> None:
    """Refuse keys that no recipe has, and keys that are swept twice, over nothing, or over equal values."""
    findings = _Findings(recipe)
    if not sweep.axes and not sweep.cells:
        findings.note(("sweep",), "has neither axes nor cells: give one of them, or delete it")
    for part in ("cells", "exclude"):
        for index, entry in enumerate(getattr(sweep, part)):
            if not entry:
                findings.note(("sweep", part, index), "is empty: give it a key or delete it")
    for key, values in sweep.axes.items():
        repeated = [value for index, value in enumerate(values) if value in values[:index]]
        if not values:
            findings.note(("sweep", "axes", key), "has no values: give it at least one")
        elif repeated:
            findings.note(("sweep", "axes", key), f"{shown(repeated[0])} stands twice")
    mentions = list(_mentions(sweep))
    for path, key in mentions:
        if message := _wrong_key(key):
            findings.note(path, message)
    findings.close()
    swept = {*sweep.axes, *(key for entry in sweep.cells for key in entry)}
    for path, key in mentions:
        overlapping = [axis for axis in sweep.axes if _overlap(axis, key) and path[1:] != ("axes", axis)]
        if path[1] in ("exclude", "baseline") and key not in swept:
            findings.note(path, f"is not swept: use a key of the axes or cells ({', '.join(sorted(swept))})")
        elif path[1] in ("axes", "cells") and overlapping:
            findings.note(path, f"is swept by sweep.axes.{overlapping[0]} too: keep one of the two")
    count = math.prod(len(values) for values in sweep.axes.values()) * max(1, len(sweep.cells))
    if count > MAX_CELLS:
        findings.note(("sweep",), f"makes {count:,} cells: a sweep holds {MAX_CELLS:,} at most")
    findings.close()


def _overlap(key: str, other: str) -> bool:
    """Whether one dotted key is the other, or a part of it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _mentions(sweep: Sweep) -> Iterator[tuple[KeyPath, str]]:
    """Every dotted key that a sweep mentions, and where."""
    yield from ((("sweep", "axes", key), key) for key in sweep.axes)
    for part in ("cells", "exclude"):
        for index, entry in enumerate(getattr(sweep, part)):
            yield from ((("sweep", part, index, key), key) for key in entry)
    yield from ((("sweep", "baseline", key), key) for key in sweep.baseline)
    for index, claim in enumerate(sweep.claims):
        yield from ((("sweep", "claims", index, "of", key), key) for key in claim.of)


def _wrong_key(key: str) -> str | None:
    """Why a dotted key cannot be swept, or ``None``."""
    path = tuple(key.split("."))
    if path[:2] == ("model", "config") and all(path):
        return None
    if path[0] in ("sweep", "description"):
        return "cannot be swept"
    if section_at(path) or path in leaves():
        return None
    return unknown_key(path, Node({})).message.partition(": ")[2]


def _kept(recipe: Recipe) -> Iterator[dict[str, Node]]:
    """The settings of every cell, as nodes with their positions in the sweep, less the excluded ones."""
    sweep = recipe.sweep
    if sweep is None:
        return
    base = resolved(recipe)
    choices = [
        [(key, _node(recipe, ("sweep", "axes", key, index), value)) for index, value in enumerate(values)]
        for key, values in sweep.axes.items()
    ]
    used = [False] * len(sweep.exclude)
    kept = 0
    for number, entry in enumerate(sweep.cells or [{}]):
        given = {key: _node(recipe, ("sweep", "cells", number, key), value) for key, value in entry.items()}
        for combination in product(*choices):
            settings = given | dict(combination)
            values = {key: node.plain() for key, node in settings.items()}
            hits = [
                all(_value(values, base, key) == value for key, value in entry.items())
                for entry in sweep.exclude
            ]
            used = [before or hit for before, hit in zip(used, hits, strict=True)]
            if not any(hits):
                kept += 1
                yield settings
    _check_exclusions(recipe, used, kept)


def _check_exclusions(recipe: Recipe, used: list[bool], kept: int) -> None:
    findings = _Findings(recipe)
    for index, hit in enumerate(used):
        if not hit:
            findings.note(("sweep", "exclude", index), "leaves out no cell: mend or delete it")
    if not kept:
        findings.note(("sweep", "exclude"), "leaves no cell")
    findings.close()


def _node(recipe: Recipe, path: KeyPath, value: Any) -> Node:
    """A value of the sweep with its position, where the recipe still is what its text says."""
    node = recipe.text.at(path)
    return (
        node if node is not None and node.plain() == value else Node.of(value, position_of(path, recipe.text))
    )


def _cell_recipe(base: Node, settings: Mapping[str, Node], values: Mapping[str, Any]) -> Recipe:
    """The recipe of one cell; an error that no swept value holds alone names the cell it came up in."""
    tree = base
    for key, node in settings.items():
        tree = tree.merged(nested(split_key(key), node))
    try:
        return validate(tree)
    except RecipeError as found:
        first = next(iter(settings.values())).position
        name = ", ".join(f"{key}={_text(value)}" for key, value in values.items())
        raise combined(
            error if error.position else RecipeError(f"{error.message} (in the cell {name})", first)
            for error in (found.errors if isinstance(found, RecipeErrors) else (found,))
        ) from None


def _check_distinct(cells: list[Cell], recipe: Recipe) -> None:
    """Refuse cells that are the same recipe: they could not be told apart in a table, nor on resuming."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.digest, cell)
        if twin is not cell:
            message = f"sweep: the cells {twin.key!r} and {cell.key!r} are the same recipe: keep one of them"
            raise RecipeError(message, position_of(("sweep",), recipe.text, key=True))


def _with_baselines(cells: list[Cell], recipe: Recipe) -> tuple[Cell, ...]:
    """The cells, each with the index of the one that ``sweep.baseline`` compares it with."""
    baseline = recipe.sweep.baseline if recipe.sweep else {}
    if not baseline:
        return tuple(cells)
    data = [resolved(cell.recipe) for cell in cells]
    others = sorted({key for cell in cells for key in cell.values} - set(baseline))
    groups: dict[str, list[int]] = {}
    marked: dict[str, list[int]] = {}
    for cell in cells:
        values = [_value(cell.values, data[cell.index], key) for key in others]
        group = json.dumps(values, sort_keys=True)
        groups.setdefault(group, []).append(cell.index)
        if all(_value(cell.values, data[cell.index], key) == value for key, value in baseline.items()):
            marked.setdefault(group, []).append(cell.index)
    position = position_of(("sweep", "baseline"), recipe.text, key=True)
    for group, members in groups.items():
        count = len(marked.get(group, []))
        if count != 1:
            example = cells[members[0]].key
            message = (
                f"sweep.baseline: marks {count or 'no'} cells in the group of {example!r}: it must mark one"
            )
            raise RecipeError(message, position)
    home = {index: marked[group][0] for group, members in groups.items() for index in members}
    return tuple(Cell(cell.index, cell.values, cell.recipe, baseline=home[cell.index]) for cell in cells)


def _with_claims(cells: tuple[Cell, ...], recipe: Recipe) -> tuple[Cell, ...]:
    """The cells, each with the claim that speaks of it."""
    claims = recipe.sweep.claims if recipe.sweep else []
    if not claims:
        return cells
    findings = _Findings(recipe)
    data = [resolved(cell.recipe) for cell in cells]
    told: dict[int, Claim] = {}
    for number, claim in enumerate(claims):
        path: KeyPath = ("sweep", "claims", number)
        meant = [
            cell
            for cell in cells
            if all(_value(cell.values, data[cell.index], key) == value for key, value in claim.of.items())
        ]
        if not meant:
            findings.note((*path, "of"), "speaks of no cell: mend or delete the claim")
        for cell in meant:
            if cell.index in told:
                findings.note(path, f"the cell {cell.key!r} has a claim already, {told[cell.index].name!r}")
            elif cell.baseline in (None, cell.index):
                findings.note(path, f"the cell {cell.key!r} has no baseline to be compared with")
            told[cell.index] = claim
    findings.close()
    return tuple(replace(cell, claim=told.get(cell.index)) for cell in cells)


def _value(values: Mapping[str, Any], data: Mapping[str, Any], key: str) -> Any:
    """What a cell has at a dotted key: the sweep's own value, else the recipe's."""
    if key in values:
        return values[key]
    found: Any = data
    for step in key.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found["name"] if key == "device" and isinstance(found, Mapping) else found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
