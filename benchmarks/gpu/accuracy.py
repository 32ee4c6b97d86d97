"""Predicted against measured, cell by cell, as ``memgpt bench`` measures: several cells share the GPU.

Bytes that torch's allocator counts are the process's own, whoever runs beside it. Figures of the whole device
are not, so none is kept here; nor are times, for which ``speed`` has each cell alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import predictions, rows
from benchmarks.gpu.cells import KitCell, cells_of
from benchmarks.gpu.crew import Crew, Job, Rest, unwatched
from benchmarks.gpu.figures import DIFFERENCES, FIGURES, differences, figures_of, prefixed
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.rows import IDENTITY, OPTIONS
from mem_gpt_cli.bench.columns import Row, row_of
from mem_gpt_cli.bench.outcome import Outcome
from mem_gpt_cli.bench.worker import Worker
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.report.csv import append_row

NAME = "accuracy.csv"
LENSES = ("predicted", "retraced", "measured")
"""Committed before the run; traced again with the torch that measures; measured."""

_OF_THE_SWEEP = (
    *IDENTITY,
    "model",
    "architecture",
    "parameters",
    "task",
    *OPTIONS,
    "allocator",
    "device_name",
    "start_reserved_bytes",
    "measured_peak_operation",
    "trace_s",
    "profile_s",
    "failed_phase",
    "error",
)
COLUMNS = (
    "name",
    *_OF_THE_SWEEP,
    "predictions_blob",
    "others_at_start",
    *(f"{lens}_{name}" for lens in LENSES for name in FIGURES),
    *(f"{lens}_{name}" for lens in LENSES[:2] for name in DIFFERENCES),
)

CELL_S = 150.0
"""A cell that takes longer is ended."""
CONTEXT_BYTES = 700 * 2**20
"""Set aside for each worker's CUDA context and libraries."""
SHARE_OF_MEMORY = 0.85
FORMULA_MARGIN = 1.3
"""What a formula's peak is multiplied with where no trace tells what will be reserved."""


def run(kit: Kit, share: float) -> list[str]:
    """Measure the cells without a good, whole row; returns the names of those that time was too short for."""
    path = kit.out / NAME
    done = {digest for digest, row in rows.good(path).items() if _is_retraced(row)}
    stage = _Stage(kit, path, predictions.read(kit.predictions))
    jobs = [
        stage.job(cell) for cell in cells_of(kit.device, "accuracy", kit.pattern) if cell.digest not in done
    ]
    size = min(kit.workers, max(1, len(jobs)))
    left = Crew(size, _room(kit, size), kit.clock, share).run(jobs)
    # What ran out of memory beside others may have done so because of them.
    left += Crew(1, None, kit.clock, share).run(stage.crowded_out)
    return left + stage.untraced


def _is_retraced(row: Row) -> bool:
    """Not what was measured so shortly before the end that no time was left to trace it."""
    return row["status"] == "unsupported" or row["retraced_peak_allocated_bytes"] is not None


def _room(kit: Kit, workers: int) -> int | None:
    if kit.memory_bytes is None:
        return None
    return int(SHARE_OF_MEMORY * kit.memory_bytes) - (workers * CONTEXT_BYTES if kit.device == "cuda" else 0)


@dataclass
class _Stage:
    kit: Kit
    path: Path
    predicted: Mapping[str, Row]
    crowded_out: list[Job] = field(default_factory=list)
    untraced: list[str] = field(default_factory=list)

    def job(self, cell: KitCell) -> Job:
        def run(worker: Worker, left_s: float, others: int) -> Rest | None:
            measured = self._measure(cell, worker, left_s, others)
            return None if measured is None else partial(self._finish, cell, worker, others, measured)

        return Job(cell.name, self._need(cell), run)

    def _need(self, cell: KitCell) -> int:
        """Bytes by the committed prediction, without one by the formula."""
        known = self.predicted.get(cell.digest, {})
        need = known.get("peak_reserved_bytes") or known.get("peak_allocated_bytes")
        return need or int(FORMULA_MARGIN * estimate(cell.on(self.kit.device)).allocated_bytes)

    def _measure(self, cell: KitCell, worker: Worker, left_s: float, others: int) -> Outcome | None:
        """What became of the cell on the device; ``None`` where the end of the time cut it off."""
        time_s = min(left_s, CELL_S)
        measured = worker.run(cell.on(self.kit.device), ("profile",), time_s, unwatched)
        if measured.status in ("error", "oom"):
            worker.close()  # a CUDA context may be beyond repair
        if time_s < CELL_S and "took longer" in (measured.error or ""):
            return None
        if measured.status == "oom" and others:
            self.crowded_out.append(self.job(cell))
        return measured

    def _finish(self, cell: KitCell, worker: Worker, others: int, measured: Outcome, left_s: float) -> None:
        """Trace the cell with this machine's torch, which takes no memory of the device, and add its row."""
        traced = worker.run(cell.on(self.kit.gpu), ("trace",), min(left_s, CELL_S), unwatched)
        if measured.status == "ok" and "took longer" in (traced.error or ""):
            self.untraced.append(cell.name)
        row = self._row(cell, traced, measured, others)
        append_row(self.path, COLUMNS, row)
        self.kit.say(f"{cell.name} {row['status']} {_brief(row)} {cell.cell.key}")

    def _row(self, cell: KitCell, traced: Outcome, measured: Outcome, others: int) -> Row:
        known = row_of(cell.sweep, self.kit.started, cell.cell, ("profile",), measured)
        errors = [outcome.error for outcome in (traced, measured) if outcome.error]
        model = {name: known[name] for name in ("architecture", "parameters")}
        if "trace" in traced.reports:
            summary = traced.reports["trace"].model
            model = {"architecture": summary.architecture, "parameters": summary.parameters}
        figures = {
            "predicted": {name: self.predicted.get(cell.digest, {}).get(name) for name in FIGURES},
            "retraced": figures_of(traced.reports.get("trace")),
            "measured": figures_of(measured.reports.get("profile")),
        }
        row: Row = {"name": cell.name} | {column: known[column] for column in _OF_THE_SWEEP} | model
        row |= {
            "trace_s": traced.seconds.get("trace"),
            "error": "; ".join(errors) or None,
            "predictions_blob": self.kit.predictions_blob if cell.digest in self.predicted else None,
            "others_at_start": others,
        }
        for lens in LENSES:
            row |= prefixed(lens, figures[lens])
        for lens in LENSES[:2]:
            row |= prefixed(lens, differences(figures[lens], figures["measured"]))
        return row


def _brief(row: Row) -> str:
    """The differences of a row, for whoever watches."""
    shown: Sequence[tuple[str, Any]] = [
        (kind, row[f"retraced_peak_{kind}_difference_percent"]) for kind in ("allocated", "reserved")
    ]
    return " ".join(f"{kind} {percent:+.3f}%" for kind, percent in shown if percent is not None)
