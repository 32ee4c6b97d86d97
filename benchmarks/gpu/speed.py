"""Prefill, decode and training step, each cell alone on the device, several times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.gpu import rows
from benchmarks.gpu.cells import KitCell, cells_of
from benchmarks.gpu.crew import LEAST_S, unwatched
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.rows import IDENTITY, OPTIONS
from mem_gpt_cli.bench.columns import Row, row_of
from mem_gpt_cli.bench.worker import Worker
from mem_gpt_cli.report.csv import append_row

NAME = "speed.csv"
REPEATS = 5
METRICS = (
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "train_tokens_per_s",
    "ttft_ms",
    "decode_ms_per_token",
    "step_s",
    "power_w",
    "utilization_percent",
    "temperature_c",
)
_OF_THE_SWEEP = (
    *IDENTITY,
    "model",
    "task",
    *OPTIONS,
    "device_name",
    "error",
)
SPREADS = ("median", "least", "most")
COLUMNS = (
    "name",
    *_OF_THE_SWEEP,
    "repeats",
    *(f"{spread}_{metric}" for metric in METRICS for spread in SPREADS),
)


def run(kit: Kit, share: float) -> list[str]:
    """Measure the cells that have no good row yet; returns the names of those that time was too short for."""
    path = kit.out / NAME
    done = rows.good(path)
    cells = [cell for cell in cells_of(kit.device, "speed", kit.pattern) if cell.digest not in done]
    worker = Worker()
    left: list[str] = []
    try:
        for number, cell in enumerate(cells):
            row = _measured(kit, cell, worker, share, len(cells) - number)
            if row is None:
                left.append(cell.name)
            else:
                append_row(path, COLUMNS, row)
                kit.say(f"{cell.name} {row['status']}, {row['repeats']} repeats: {cell.cell.key}")
    finally:
        worker.close()
    return left


def _measured(kit: Kit, cell: KitCell, worker: Worker, share: float, cells: int) -> Row | None:
    """The row of a cell, after one run that does not count; ``None`` where time is too short for it.

    The first run may take all the time that is left, the repeats this one's part of it among ``cells``.
    """
    end_s = kit.clock.left(share) * (1 - 1 / cells)
    runs: list[Row] = []
    while len(runs) <= REPEATS and kit.clock.left(share) > (end_s if runs else LEAST_S):
        outcome = worker.run(cell.on(kit.device), ("profile",), kit.clock.left(share), unwatched)
        if outcome.status != "ok" and runs and "took longer" in (outcome.error or ""):
            break
        runs.append(row_of(cell.sweep, kit.started, cell.cell, ("profile",), outcome))
        if outcome.status != "ok":
            worker.close()
            break
    if not runs or "took longer" in (runs[-1]["error"] or ""):
        return None
    counted = runs[1:] or runs
    row = {
        "name": cell.name,
        **{column: runs[-1][column] for column in _OF_THE_SWEEP},
        "repeats": len(counted),
    }
    return row | _spread([_metrics(each) for each in counted])


def _metrics(row: Row) -> dict[str, float | None]:
    """``METRICS`` of one run."""
    training = row["task"] == "training"
    prefill_s, decode_s = ((row[name] or 0) / 1000 for name in ("ttft_ms", "decode_ms_per_token"))
    return {
        **{metric: row.get(metric) for metric in METRICS},
        "prefill_tokens_per_s": row["batch"] * row["prompt_tokens"] / prefill_s if prefill_s else None,
        "decode_tokens_per_s": row["batch"] / decode_s if decode_s else None,
        "train_tokens_per_s": row["tokens_per_s"] if training else None,
    }


def _spread(runs: Sequence[Mapping[str, float | None]]) -> Row:
    row: Row = {}
    for metric in METRICS:
        known = [figure for run in runs if (figure := run[metric]) is not None]
        if known:
            figures = (statistics.median(known), min(known), max(known))
            row |= {f"{spread}_{metric}": figure for spread, figure in zip(SPREADS, figures, strict=True)}
    return row
