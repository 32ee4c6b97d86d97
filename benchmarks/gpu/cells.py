"""The kit's cells: the sweeps of this folder, each cell with a name that stays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from mem_gpt_cli.recipe import Cell, Recipe, expand, load_recipe

SWEEPS = Path(__file__).with_name("sweeps")
Part = Literal["accuracy", "speed", "claims", "histories"]


@dataclass(frozen=True)
class KitCell:
    """A cell of one of the sweeps.

    Its digest is that of the recipe as it is written (``device: cuda``), so that a prediction for a named
    GPU and a measurement on the GPU that is there belong together.
    """

    sweep: str
    cell: Cell

    @property
    def name(self) -> str:
        """For example ``gpt2-xl/3``."""
        return f"{self.sweep}/{self.cell.index}"

    @property
    def digest(self) -> str:
        """What the cell is told by in files, see ``Cell.digest``."""
        return self.cell.digest

    def on(self, device: str) -> Recipe:
        """The cell's recipe on a device of that name."""
        recipe = self.cell.recipe
        return recipe.model_copy(update={"device": recipe.device.model_copy(update={"name": device})})


def cells_of(device_type: str, part: Part, pattern: str = "*") -> tuple[KitCell, ...]:
    """The cells of a part of the kit for ``cuda`` or ``cpu`` whose name or key matches, in their order."""
    return tuple(_matching(_all(device_type, part), pattern))


def _all(device_type: str, part: Part) -> Iterable[KitCell]:
    folder = SWEEPS / device_type
    for path in sorted((folder / part).glob("*.yaml")) or filter(Path.is_file, [folder / f"{part}.yaml"]):
        for cell in expand(load_recipe(path)):
            yield KitCell(path.stem, cell)


def _matching(cells: Iterable[KitCell], pattern: str) -> Iterable[KitCell]:
    return (
        cell
        for cell in cells
        if fnmatchcase(cell.name, pattern) or fnmatchcase(cell.cell.key, f"*{pattern}*")
    )
