"""What a table calls the cells of a sweep: what a group shares in its title, the rest in each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mem_gpt_cli.recipe import Cell, resolved
from mem_gpt_cli.recipe.loading import short_name

_SPEAKS_FOR_ITSELF = ("model.name", "task")


@dataclass(frozen=True)
class Group:
    """Cells that are compared with each other; ``labels`` by the cells' indices, in the order of the rows."""

    title: str
    labels: Mapping[int, str]


def groups(cells: Sequence[Cell]) -> list[Group]:
    """The cells in groups of one baseline; all of them in one where the sweep names none."""
    members: dict[int | None, list[Cell]] = {}
    for cell in cells:
        members.setdefault(cell.baseline, []).append(cell)
    return [_group(group, home) for home, group in members.items()]


def _group(cells: list[Cell], home: int | None) -> Group:
    keys = list(dict.fromkeys((*_SPEAKS_FOR_ITSELF, *(key for cell in cells for key in cell.values))))
    values = {cell.index: _values(cell, keys) for cell in cells}
    first = values[home if home in values else cells[0].index]
    shared = [key for key in keys if all(found[key] == first[key] for found in values.values())]
    labels = {}
    for cell in cells:
        own = values[cell.index]
        told = [key for key in keys if key not in shared and (home is None or own[key] != first[key])]
        words = ", ".join(_words(key, own[key]) for key in told)
        labels[cell.index] = cell.claim.name if cell.claim else words
    if home in labels and len(cells) > 1:
        labels[home] = "baseline"
    return Group(" · ".join(_words(key, first[key]) for key in shared), labels)


def _words(key: str, value: Any) -> str:
    if key in _SPEAKS_FOR_ITSELF:
        return str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return f"{short_name(key).replace('_', ' ')} {value}"


def _values(cell: Cell, keys: Sequence[str]) -> dict[str, Any]:
    """What a cell has at dotted keys: the sweep's own value, else the recipe's."""
    data = {} if cell.values.keys() >= set(keys) else resolved(cell.recipe)
    return {key: cell.values[key] if key in cell.values else _at(data, key) for key in keys}


def _at(data: Any, key: str) -> Any:
    for step in key.split("."):
        data = data.get(step) if isinstance(data, Mapping) else None
    return data
