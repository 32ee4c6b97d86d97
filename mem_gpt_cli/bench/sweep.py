"""A sweep: every cell in a process of its own, a row at once for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mem_gpt_cli.bench.claims import judged
from mem_gpt_cli.bench.columns import Row, compared, row_of
from mem_gpt_cli.bench.outcome import LENSES
from mem_gpt_cli.bench.store import Store
from mem_gpt_cli.bench.worker import Worker
from mem_gpt_cli.recipe import Cell
from mem_gpt_cli.report.model import Lens

DEFAULT_TIMEOUT_S = 600.0


class Watcher(Protocol):
    """Whoever follows a sweep."""

    def begin(self, cell: Cell) -> None:
        """A cell is about to run."""
        ...

    def phase(self, name: str, step: int, steps: int) -> None:
        """Its real run has come to this step."""
        ...


class Unwatched:
    """Nobody follows."""

    def begin(self, cell: Cell) -> None:
        """No-op."""

    def phase(self, name: str, step: int, steps: int) -> None:
        """No-op."""


@dataclass(frozen=True)
class Plan:
    """What to run, and how.

    ``name`` is the recipe's, for the rows. ``resume`` takes the rows of cells that ``csv`` holds as ``ok``
    instead of running them again. ``cells_per_process`` above 1 saves the time of imports; the memory of
    tensors is the same, that of the process is then the sum of what its cells left behind.
    """

    name: str
    cells: Sequence[Cell]
    csv: Path
    lenses: Sequence[Lens] = LENSES
    timeout_s: float | None = DEFAULT_TIMEOUT_S
    resume: bool = False
    cells_per_process: int = 1


def run_sweep(plan: Plan, watcher: Watcher | None = None) -> Iterator[Row]:
    """Run the cells, a baseline before those that are compared with it, and yield each one's row.

    A row is in the CSV before it is yielded; those that were there already (``resume``) are yielded too.

    Raises:
        UsageError: if the CSV cannot be written, or holds other columns.
    """
    store, watcher = Store(plan.csv), watcher or Unwatched()
    store.check()
    lenses = tuple(lens for lens in LENSES if lens in plan.lenses)
    finished = store.finished(lenses) if plan.resume else {}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    rows: dict[int, Row] = {}
    worker = Worker()
    try:
        for number, cell in enumerate(in_order(plan.cells)):
            if cell.digest in finished:
                row = finished[cell.digest] | {"cell": cell.index, "key": cell.key}
            else:
                watcher.begin(cell)
                outcome = worker.run(cell.recipe, lenses, plan.timeout_s, watcher.phase)
                row = row_of(plan.name, started, cell, lenses, outcome)
                if cell.baseline is not None:
                    home = row if cell.baseline == cell.index else rows[cell.baseline]
                    row |= compared(row, home)
                    if cell.claim is not None:
                        row |= judged(row, home, cell.claim)
                store.append(row)
            rows[cell.index] = row
            yield row
            if (number + 1) % plan.cells_per_process == 0:
                worker.close()
    finally:
        worker.close()


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Each baseline right before its group; groups in the order of their baselines."""

    def place(cell: Cell) -> tuple[int, bool, int]:
        home = cell.index if cell.baseline is None else cell.baseline
        return home, cell.index != home, cell.index

    return sorted(cells, key=place)
