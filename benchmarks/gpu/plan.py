"""``--plan``: what a run would do, and each prediction, without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from benchmarks.gpu import ROOT, predictions
from benchmarks.gpu.cells import KitCell, cells_of
from benchmarks.gpu.figures import KINDS
from benchmarks.gpu.stages import STAGES
from mem_gpt_cli.bench.columns import Row
from mem_gpt_cli.cli import console
from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.table import plain_table

LABEL_WIDTH = 52


def show(device: str, pattern: str, limit_s: float, *, as_json: bool, write: bool) -> None:
    """Predict the cells for a GPU of the catalogue, or for the rehearsal's ``cpu``, and print the plan.

    Raises:
        UsageError: for an unknown GPU, no cell, or a part of the cells that would be written.
    """
    kind = "cpu" if device == "cpu" else "cuda"
    name = device if kind == "cpu" else find_gpu(device).name
    cells = cells_of(kind, "accuracy", pattern)
    if not cells:
        raise UsageError(f"--cells {pattern!r} matches no cell")
    if write and len(cells) < len(cells_of(kind, "accuracy")):
        raise UsageError("--write writes the predictions of all cells: leave --cells out")
    rows = predictions.predict(
        cells, name, datetime.now(UTC).isoformat(timespec="seconds"), _told(len(cells))
    )
    if as_json:
        print(json.dumps({"device": name, "stages": _stages(kind, limit_s), "predictions": rows}, indent=1))
    else:
        _print(name, kind, limit_s, cells, rows)
    if write:
        path = predictions.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        predictions.write(rows, path)
        print(f"written to {path.relative_to(ROOT)}", file=sys.stderr)


def _told(total: int) -> Any:
    done: list[str] = []

    def tell(row: Row) -> None:
        done.append(row["name"])
        print(f"[{len(done)}/{total}] {row['name']} {row['status']}", file=sys.stderr, flush=True)

    return tell


def _stages(kind: str, limit_s: float) -> list[dict[str, Any]]:
    shares = [0.0, *(stage.share for stage in STAGES)]
    return [
        {
            "name": stage.name,
            "file": stage.file,
            "from_s": round(before * limit_s),
            "until_s": round(stage.share * limit_s),
            "cells": len(cells_of(kind, stage.part)) if stage.part else None,
        }
        for stage, before in zip(STAGES, shares[:-1], strict=True)
    ]


def _print(name: str, kind: str, limit_s: float, cells: Sequence[KitCell], rows: Sequence[Row]) -> None:
    screen = console.data()
    shown = plain_table()
    for heading in ("stage", "until", "cells", "file"):
        shown.add_column(heading, justify="left" if heading in ("stage", "file") else "right")
    for stage in _stages(kind, limit_s):
        count = "" if stage["cells"] is None else str(stage["cells"])
        shown.add_row(stage["name"], f"{stage['until_s']} s", count, stage["file"])
    screen.print(shown)
    screen.print(Text(f"\npredicted for {name}", style="bold"))
    shown = plain_table()
    shown.add_column("cell", width=LABEL_WIDTH, overflow="fold")
    for heading in KINDS:
        shown.add_column(heading, justify="right", no_wrap=True)
    for cell, row in zip(cells, rows, strict=True):
        figures = [render_bytes(row[f"peak_{kind}_bytes"]) for kind in KINDS]
        if row["status"] != "ok":
            figures[0] = row["status"]
        shown.add_row(f"{cell.name} {cell.cell.key}", *figures)
    screen.print(shown)
    for row in rows:
        if row["error"]:
            screen.print(Text(f"{row['name']}: {row['error']}"))
