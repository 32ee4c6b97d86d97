"""The summary of ``results/accuracy_cpu.csv``, written between two marks in ``docs/accuracy.md``.

    python benchmarks/accuracy/summary.py            # ends with 3 where a cell misses the criterion

The criterion: the traced peak is at most 0.01% or 4 KiB from the measured one, whichever is more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mem_gpt_cli.bench.columns import Row
from mem_gpt_cli.bench.store import typed
from mem_gpt_cli.errors import GateError
from mem_gpt_cli.report.csv import read_rows

ROOT = Path(__file__).parent.parent.parent
BEGIN, END = "<!-- summary: benchmarks/accuracy/summary.py -->", "<!-- end of summary -->"
MOST_BYTES = 4096
MOST_SHARE = 1e-4
DRAWN = "drawn-"


def main() -> int:
    parser = argparse.ArgumentParser(description="Summarise the accuracy benchmark.")
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / "accuracy_cpu.csv")
    parser.add_argument("--doc", type=Path, default=ROOT / "docs" / "accuracy.md")
    arguments = parser.parse_args()
    rows = latest(map(typed, read_rows(arguments.csv)))
    text = "\n".join(summary(rows))
    before, _, rest = arguments.doc.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    arguments.doc.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    print(text)
    return GateError.exit_code if any(misses(row) for row in rows) else 0


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each cell: the ones before it were run again."""
    return list({(row["recipe"], row["digest"]): row for row in rows}.values())


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the summary, in Markdown."""
    good = [row for row in rows if row["trace_residual_bytes"] is not None]
    met = sum(not misses(row) for row in good)
    exact = sum(row["trace_residual_bytes"] == 0 for row in good)
    yield ""
    yield (
        f"{len(rows)} cells, {len(good)} of them measured. Trace: {met} of {len(good)} "
        f"within 0.01% or 4 KiB of the allocator's peak, {exact} equal to it, "
        f"worst {worst_bytes(good):,} B. Torch {', '.join(sorted({row['torch_version'] for row in good}))}, "
        f"transformers {', '.join(sorted({row['transformers_version'] for row in good}))}."
    )
    yield ""
    yield (
        "| model | task | cells | trace off: median B | 95th | worst | worst % "
        "| formula off: median % | 95th | worst |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    chosen = [row for row in good if not row["recipe"].startswith(DRAWN)]
    drawn = [row for row in good if row["recipe"].startswith(DRAWN)]
    for name in sorted({row["recipe"] for row in chosen}):
        for task in ("inference", "training"):
            yield line(name, task, [row for row in chosen if (row["recipe"], row["task"]) == (name, task)])
    for title, group in (("**all chosen**", chosen), ("**drawn at random**", drawn)):
        for task in ("inference", "training"):
            yield line(title, task, [row for row in group if row["task"] == task])
    yield ""
    yield from failures(rows)


def line(name: str, task: str, rows: Sequence[Row]) -> str:
    """A row of the table; distances without their sign."""
    if not rows:
        return f"| {name} | {task} | 0 | | | | | | | |"
    trace = [abs(row["trace_residual_bytes"]) for row in rows if row["trace_residual_bytes"] is not None]
    share = [abs(row["trace_residual_percent"]) for row in rows if row["trace_residual_percent"] is not None]
    formula = [
        abs(row["formula_residual_percent"]) for row in rows if row["formula_residual_percent"] is not None
    ]
    cells = [f"{len(rows)}", *(f"{figure:,.0f}" for figure in spread(trace)), f"{max(share):.4f}"]
    cells += [f"{figure:.2f}" for figure in spread(formula)] if formula else ["", "", ""]
    return f"| {name} | {task} | {' | '.join(cells)} |"


def spread(figures: Sequence[float]) -> tuple[float, float, float]:
    """Median, 95th percentile (the nearest figure above) and worst."""
    ordered = sorted(figures)
    return statistics.median(ordered), ordered[-(-len(ordered) * 95 // 100) - 1], ordered[-1]


def misses(row: Row) -> bool:
    """Whether the trace is further off than the criterion allows, or was not compared at all.

    Where the data decides how much is needed, the trace gives bounds, and between them is right.
    """
    measured, traced = row["measured_peak_bytes"], row["trace_peak_bytes"]
    if measured is None or traced is None:
        return True
    allowed = max(MOST_BYTES, MOST_SHARE * measured)
    lower = row["trace_lower_bytes"] if row["trace_lower_bytes"] is not None else traced
    upper = row["trace_upper_bytes"] if row["trace_upper_bytes"] is not None else traced
    return not lower - allowed <= measured <= upper + allowed


def worst_bytes(rows: Iterable[Row]) -> int:
    return max(abs(row["trace_residual_bytes"]) for row in rows)


def failures(rows: Sequence[Row]) -> Iterator[str]:
    """The cells that miss the criterion, and those in which a lens failed, by name."""
    for row in rows:
        cell = f"{row['recipe']}, cell {row['cell']} ({row['model']}, {row['task']})"
        if row["trace_residual_bytes"] is not None and misses(row):
            off, operation = row["trace_residual_bytes"], row["measured_peak_operation"]
            yield f"- misses: {cell}: {off:+,} B at `{operation}`"
        if row["status"] != "ok":
            yield f"- {row['status']}: {cell}: {row['error']}"
    if any(row["trace_lower_bytes"] is not None for row in rows):
        yield "Where the data decides how much is needed, between the trace's bounds counts as met."


if __name__ == "__main__":
    sys.exit(main())
