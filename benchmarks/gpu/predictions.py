"""Predictions of the kit's cells: made on any machine, committed before a GPU has run them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu import RESULTS
from benchmarks.gpu.cells import KitCell
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.crew import Crew, Job, Rest, unwatched
from benchmarks.gpu.figures import FIGURES, figures_of
from benchmarks.gpu.rows import IDENTITY
from benchmarks.gpu.sources import commit
from mem_gpt_cli.bench.columns import Row, row_of
from mem_gpt_cli.bench.store import typed
from mem_gpt_cli.bench.worker import Worker
from mem_gpt_cli.report.csv import append_row, read_rows

_OF_THE_SWEEP = (
    *IDENTITY,
    "error",
    "trace_s",
)
COLUMNS = ("name", *_OF_THE_SWEEP, "commit", "device", *FIGURES)


def path_of(gpu: str) -> Path:
    """The committed predictions for a GPU of that name."""
    return RESULTS / "predictions" / f"{gpu}.csv"


def predict(cells: Sequence[KitCell], device: str, started: str, on_row: Callable[[Row], None]) -> list[Row]:
    """Trace every cell for a device, as many at once as there are cores; rows in the order of the cells."""
    rows: dict[str, Row] = {}
    sources = commit()

    def job(cell: KitCell) -> Job:
        def run(worker: Worker, left_s: float, others: int) -> Rest:  # noqa: ARG001
            return lambda _: trace(worker)

        def trace(worker: Worker) -> None:
            outcome = worker.run(cell.on(device), ("trace",), None, unwatched)
            row = row_of(cell.sweep, started, cell.cell, ("trace",), outcome)
            figures = figures_of(outcome.reports.get("trace"))
            rows[cell.name] = {
                "name": cell.name,
                **{column: row[column] for column in _OF_THE_SWEEP},
                "commit": sources,
                "device": device,
                **figures,
            }
            on_row(rows[cell.name])

        return Job(cell.name, 0, run)

    Crew(os.cpu_count() or 1, None, Clock(float("inf"))).run([job(cell) for cell in cells])
    return [rows[cell.name] for cell in cells]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write predictions in place of those that the file holds."""
    beside = path.with_suffix(".tmp")
    beside.unlink(missing_ok=True)
    for row in rows:
        append_row(beside, COLUMNS, row)
    beside.replace(path)


def read(path: Path) -> dict[str, Row]:
    """The predictions of a file by the cells' digests; none without a file."""
    if not path.exists():
        return {}
    return {row["digest"]: row for row in map(typed, read_rows(path)) if row["status"] == "ok"}
