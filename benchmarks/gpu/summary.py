"""What a folder of results says: ``summary.json``, and the tables that are printed. Needs no GPU."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from benchmarks.gpu import RESULTS, accuracy, predictions, speed
from benchmarks.gpu.cells import KitCell, cells_of
from benchmarks.gpu.figures import KINDS
from benchmarks.gpu.record import runs_in
from benchmarks.gpu.rows import GOOD, latest
from benchmarks.gpu.sources import Verdict, judge
from mem_gpt_cli.bench.columns import Row
from mem_gpt_cli.report.model import COMPONENTS
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.table import plain_table

NAME = "summary.json"
GATES: Mapping[str, tuple[float, float]] = {"allocated": (1.0, 3.0), "reserved": (3.0, 8.0)}
"""Percent that a prediction may be off, without its sign: at the median, and at the 95th percentile."""
COMPARED: Mapping[str, Sequence[str]] = {"cuda": KINDS, "cpu": ("allocated",)}
"""Kinds of bytes that have to be compared: the CPU reserves nothing."""
WORST = 5


def write(folder: Path, gpu: str, pattern: str = "*") -> dict[str, Any]:
    """Summarise a folder of results for a GPU, those of the cells that match, into its ``summary.json``."""
    device = "cpu" if gpu == "cpu" else "cuda"
    cells = cells_of(device, "accuracy", pattern)
    rows = _rows(folder / accuracy.NAME, cells)
    speeds = _rows(folder / speed.NAME, cells_of(device, "speed", pattern))
    measured = {row["digest"] for row in rows}
    found = {
        "gpu": gpu,
        "asked": len(cells),
        "cells": len(rows),
        "missing": [cell.name for cell in cells if cell.digest not in measured],
        "statuses": dict(Counter(row["status"] for row in rows)),
        "blind": asdict(_verdict(rows, gpu)),
        "comparisons": {
            lens: {kind: compared(rows, lens, kind) for kind in COMPARED[device]}
            for lens in accuracy.LENSES[:2]
        },
        "not_empty_at_start": [row["name"] for row in rows if row["start_reserved_bytes"]],
        "failures": [
            {"name": row["name"], "status": row["status"], "error": row["error"]}
            for row in (*rows, *speeds)
            if row["error"] or row["status"] not in GOOD
        ],
        "speed": _speeds(speeds),
        "stages": [stage for run in runs_in(folder) for stage in run["stages"]],
    }
    (folder / NAME).write_text(json.dumps(found, indent=1) + "\n")
    return found


def _rows(path: Path, cells: Sequence[KitCell]) -> list[Row]:
    """The last rows of these cells, in their order."""
    known = latest(path)
    return [known[cell.digest] for cell in cells if cell.digest in known]


def whole(summary: Mapping[str, Any]) -> bool:
    """Whether every cell has a row and none of them failed."""
    return not summary["missing"] and all(row["status"] in GOOD for row in summary["failures"])


def met(summary: Mapping[str, Any]) -> bool:
    """Whether every comparison meets its gate; where nothing was compared it is missed."""
    return all(kind["met"] for lens in summary["comparisons"].values() for kind in lens.values())


def compared(rows: Sequence[Row], lens: str, kind: str) -> dict[str, Any]:
    """How far a lens is off over all cells for one kind of bytes, its gate, and its worst cells."""
    column = f"{lens}_peak_{kind}_difference"
    known = sorted(
        (row for row in rows if row[f"{column}_percent"] is not None),
        key=lambda row: -abs(row[f"{column}_percent"]),
    )
    of_median, of_p95 = GATES[kind]
    answer: dict[str, Any] = {
        "cells": len(known),
        "gate_median_percent": of_median,
        "gate_p95_percent": of_p95,
    }
    if not known:
        return answer | {"met": False, "worst": []}
    off = sorted(abs(row[f"{column}_percent"]) for row in known)
    median, p95 = statistics.median(off), percentile(off, 95)
    return answer | {
        "median_percent": median,
        "p95_percent": p95,
        "worst_percent": off[-1],
        "equal": sum(row[f"{column}_bytes"] == 0 for row in known),
        "met": median <= of_median and p95 <= of_p95,
        "worst": [_worst(row, lens, column) for row in known[:WORST]],
    }


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest figure that is no less than that share of them."""
    return ordered[-(-len(ordered) * percent // 100) - 1]


def _worst(row: Row, lens: str, column: str) -> dict[str, Any]:
    """A cell with the component that differs most at its peak, where one does."""
    off = {
        name: row[f"{lens}_peak_{name}_bytes"] - row[f"measured_peak_{name}_bytes"]
        for name in COMPONENTS
        if None not in (row[f"{lens}_peak_{name}_bytes"], row[f"measured_peak_{name}_bytes"])
    }
    component = max(off, key=lambda name: abs(off[name]), default=None)
    differs = component is not None and off[component] != 0
    return {
        "name": row["name"],
        "key": row["key"],
        "percent": row[f"{column}_percent"],
        "bytes": row[f"{column}_bytes"],
        "component": component if differs else None,
        "component_bytes": off[component] if component is not None and differs else None,
        "operation": row["measured_peak_operation"],
    }


def _verdict(rows: Sequence[Row], gpu: str) -> Verdict:
    """Blind only if the predictions that all compared rows were held against are."""
    judged = {
        blob: min(row["started"] for row in rows if row["predictions_blob"] == blob)
        for blob in {row["predictions_blob"] for row in rows}
        if blob is not None
    }
    first = RESULTS / gpu / accuracy.NAME
    verdicts = [
        judge(predictions.path_of(gpu), blob, first, datetime.fromisoformat(began))
        for blob, began in judged.items()
    ]
    grave = {"no": 0, "undecided": 1, "yes": 2}
    nothing = Verdict("no", f"no cell was compared with predictions committed for {gpu}")
    return min(verdicts, key=lambda verdict: grave[verdict.blind], default=nothing)


def _speeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    names = ("name", "key", "model", "task", "repeats")
    medians = [f"median_{metric}" for metric in speed.METRICS]
    return [{name: row[name] for name in (*names, *medians) if row[name] is not None} for row in rows]


def table(summary: Mapping[str, Any]) -> RenderableType:
    """The summary for people, within 80 columns."""
    blind = summary["blind"]
    parts: list[RenderableType] = [
        Text(f"{summary['gpu']}: {_counts(summary)}"),
        Text(f"blind comparison: {blind['blind']}: {blind['why']}"),
        Text(""),
        _distances(summary["comparisons"], summary["asked"]),
    ]
    parts += _worst_cells(summary["comparisons"])
    if summary["speed"]:
        parts += [Text(""), _speed_table(summary["speed"])]
    parts += [
        Text(f"{failure['name']}: {failure['status']}: {failure['error']}") for failure in summary["failures"]
    ]
    return Group(*parts)


def _counts(summary: Mapping[str, Any]) -> str:
    statuses = (f"{count} {status}" for status, count in summary["statuses"].items())
    return ", ".join((f"{summary['cells']} of {summary['asked']} cells", *statuses))


def _distances(comparisons: Mapping[str, Any], asked: int) -> RenderableType:
    shown = plain_table()
    for heading in ("", "compared", "equal", "median %", "95th %", "worst %", "gate"):
        shown.add_column(heading, justify="left" if heading in ("", "gate") else "right")
    for lens, kinds in comparisons.items():
        for kind, found in kinds.items():
            gate = f"{found['gate_median_percent']:g}/{found['gate_p95_percent']:g}"
            figures = (found.get(f"{name}_percent") for name in ("median", "p95", "worst"))
            shown.add_row(
                f"{lens} {kind}",
                f"{found['cells']} of {asked}",
                str(found.get("equal", "")),
                *("" if figure is None else f"{figure:.3f}" for figure in figures),
                f"{gate}: {'met' if found['met'] else 'missed'}",
            )
    return shown


def _worst_cells(comparisons: Mapping[str, Any]) -> Iterator[RenderableType]:
    for lens, kinds in comparisons.items():
        for kind, found in kinds.items():
            worst = [cell for cell in found["worst"] if cell["bytes"]]
            if worst:
                yield Text(f"\nworst {kind}, {lens} minus measured")
            for cell in worst:
                part = (
                    f"; {cell['component']} {render_bytes(cell['component_bytes'], signed=True)}"
                    if cell["component"]
                    else ""
                )
                off = f"{cell['percent']:+.2f}% {render_bytes(cell['bytes'], signed=True)}{part}"
                yield Text(f"  {cell['name']}: {off} ({cell['key']})")


def _speed_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    shown = plain_table()
    headings = ("model", "task", "prefill tokens/s", "decode tokens/s", "step s")
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in ("model", "task") else "right")
    for row in rows:
        figures = (
            _figure(row.get(f"median_{name}"))
            for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "step_s")
        )
        shown.add_row(row["model"], row["task"], *figures)
    return shown


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
