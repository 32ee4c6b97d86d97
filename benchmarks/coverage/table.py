"""The coverage of the registry as a CSV and as a page of documentation."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TASKS = ("inference", "training")
TOLERANCE_BYTES, TOLERANCE_SHARE = 4096, 1e-4
COLUMNS = [
    "model_type",
    "architecture",
    "parameters",
    "constructs",
    *(
        f"{task}_{column}"
        for task in TASKS
        for column in ("runs", "traces", "measured_bytes", "traced_bytes", "residual_bytes", "reason")
    ),
]


def flat(found: Mapping[str, Any]) -> dict[str, str]:
    """A worker's answer as a row; nothing is the empty cell."""
    row = {key: found.get(key) for key in ("model_type", "architecture", "parameters", "constructs")}
    for task in TASKS:
        cell = found.get(task, {})
        measured, traced = cell.get("measured_bytes"), cell.get("traced_bytes")
        row |= {
            f"{task}_runs": measured is not None,
            f"{task}_traces": None if measured is None else traced is not None,
            f"{task}_measured_bytes": measured,
            f"{task}_traced_bytes": None if traced is None else "-".join(map(str, traced)),
            f"{task}_residual_bytes": cell.get("residual_bytes"),
            f"{task}_reason": cell.get("reason") or found.get("reason"),
        }
    return {key: _text(row[key]) for key in COLUMNS}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def read(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV by model type; nothing where there is none yet."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["model_type"]: row for row in csv.DictReader(file)}


def write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Replace the CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["model_type"]))


def within(row: Mapping[str, str], task: str) -> bool:
    """Whether the trace of a row is at most 0.01% or 4 KiB off."""
    residual = abs(int(row[f"{task}_residual_bytes"]))
    return residual <= max(TOLERANCE_BYTES, TOLERANCE_SHARE * int(row[f"{task}_measured_bytes"]))


def page(rows: Mapping[str, Mapping[str, str]], versions: str) -> str:
    """docs/coverage.md."""
    listed = sorted(rows.values(), key=lambda row: row["model_type"])
    parts = [
        "# Coverage of the registry",
        "Every model type that transformers registers as a causal language model, scaled down to a few "
        "layers of width 64, is run for real on a CPU and traced: inference with a prompt of 24 tokens and "
        "three decode steps, training for two steps, batch 2. Measured is the peak that the CPU allocator "
        "itself reports; the residual is traced less measured. Where the data decides which tokens go to "
        "which expert the trace is a range, and the residual is the distance to it.",
        "Made with `python -m benchmarks.coverage.run`, which resumes from "
        f"`results/coverage.csv`; {versions}.",
        _summary(listed),
        "## Every model type",
        _table(
            [
                "model type",
                "parameters",
                *(f"{task} {c}" for task in TASKS for c in ("measured", "traced", "residual")),
            ],
            [
                [
                    row["model_type"],
                    row["parameters"],
                    *(cell for task in TASKS for cell in _cells(row, task)),
                ]
                for row in listed
                if row["constructs"] == "yes"
            ],
        ),
        "## What does not trace, and why",
        _reasons(listed, lambda row, task: row[f"{task}_traces"] == "no"),
        "## What does not run for real from a scaled-down config",
        "These count neither for nor against the trace.",
        _reasons(listed, lambda row, task: row[f"{task}_runs"] == "no"),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(rows: list[Mapping[str, str]]) -> str:
    lines = []
    for task in TASKS:
        ran = [row for row in rows if row[f"{task}_runs"] == "yes"]
        traced = [row for row in ran if row[f"{task}_traces"] == "yes"]
        exact = sum(row[f"{task}_residual_bytes"] == "0" for row in traced)
        close = sum(within(row, task) for row in traced)
        share = 100 * len(traced) / max(1, len(ran))
        lines.append(
            [task, str(len(rows)), str(len(ran)), f"{len(traced)} ({share:.1f}%)", str(exact), str(close)]
        )
    return _table(
        ["task", "registered", "run for real", "trace", "to the byte", "within 0.01% or 4 KiB"], lines
    )


def _cells(row: Mapping[str, str], task: str) -> list[str]:
    return [row[f"{task}_{column}"] or "—" for column in ("measured_bytes", "traced_bytes", "residual_bytes")]


def _reasons(rows: list[Mapping[str, str]], chosen: Any) -> str:
    lines: list[list[str]] = []
    for row in rows:
        tasks = [task for task in TASKS if chosen(row, task)]
        reasons = {row[f"{task}_reason"]: task for task in reversed(tasks)}
        for reason in reasons:
            named = ", ".join(task for task in tasks if row[f"{task}_reason"] == reason)
            lines.append([row["model_type"], named, reason.replace("|", "\\|")])
    return _table(["model type", "task", "reason"], lines) if lines else "None."


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
