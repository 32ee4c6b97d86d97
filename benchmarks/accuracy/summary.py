"""The summary of ``results/accuracy_cpu.csv``, written between two marks in ``docs/accuracy.md``.

    python benchmarks/accuracy/summary.py            # ends with 3 where a cell misses the criterion

The criterion: the traced peak is at most 0.01% or 4 KiB from the measured one, whichever is more. Where the
data decides how much is needed, the trace gives bounds, and the peak lies between them, give or take 4 KiB.
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
TASKS = ("inference", "training")


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
    exact, bounded = ([row for row in good if has_bounds(row) is wanted] for wanted in (False, True))
    met = sum(not misses(row) for row in good)
    equal = sum(row["trace_residual_bytes"] == 0 for row in exact)
    yield ""
    yield (
        f"{len(rows)} cells, {len(good)} of them measured; {met} of {len(good)} meet the criterion. "
        f"Of the {len(exact)} without bounds, the trace equals the allocator's peak in {equal} and is "
        f"at worst {worst_bytes(exact):,} B off. "
        f"Torch {', '.join(sorted({row['torch_version'] for row in good}))}, "
        f"transformers {', '.join(sorted({row['transformers_version'] for row in good}))}."
    )
    yield ""
    yield from distances(exact)
    if bounded:
        yield ""
        yield from bounds(bounded)
    yield ""
    yield from failures(rows)


def distances(rows: Sequence[Row]) -> Iterator[str]:
    """The table of the cells whose peak the trace gives as one figure."""
    yield (
        "| sweep | task | cells | trace off: median B | 95th | worst | worst % "
        "| formula off: median % | 95th | worst |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    chosen = [row for row in rows if not row["recipe"].startswith(DRAWN)]
    drawn = [row for row in rows if row["recipe"].startswith(DRAWN)]
    groups = [(name, of_recipe(chosen, name)) for name in names(chosen)]
    groups.append(("**all chosen**", chosen))
    for name in names(drawn):
        *options, seed = name.removeprefix(DRAWN).split("-")
        groups.append((", ".join(["drawn at random", *options, f"seed {seed}"]), of_recipe(drawn, name)))
    groups.append(("**all drawn**", drawn))
    for title, group in groups:
        for task in TASKS:
            if of_task := [row for row in group if row["task"] == task]:
                yield line(title, task, of_task)


def bounds(rows: Sequence[Row]) -> Iterator[str]:
    """The table of the cells in which the data decides: the trace gives a lower and an upper bound."""
    yield (
        "| data decides | task | cells | measured between the bounds | bounds apart: median % | worst "
        "| even choice off: worst % | formula off: worst % |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for model in sorted({row["model"] for row in rows}):
        for task in TASKS:
            group = [row for row in rows if (row["model"], row["task"]) == (model, task)]
            if not group:
                continue
            met = sum(not misses(row) for row in group)
            apart = spread(
                [percent(row["trace_upper_bytes"] - row["trace_lower_bytes"], row) for row in group]
            )
            traced, formula = (
                max((abs(row[column]) for row in group if row[column] is not None), default=0.0)
                for column in ("trace_residual_percent", "formula_residual_percent")
            )
            yield (
                f"| {model} | {task} | {len(group)} | {met} | {apart[0]:.2f} | {apart[-1]:.2f} "
                f"| {traced:.2f} | {formula:.2f} |"
            )


def names(rows: Iterable[Row]) -> list[str]:
    return sorted({row["recipe"] for row in rows})


def of_recipe(rows: Iterable[Row], name: str) -> list[Row]:
    return [row for row in rows if row["recipe"] == name]


def percent(nbytes: int, row: Row) -> float:
    """Bytes in percent of the row's measured peak."""
    return 100.0 * nbytes / int(row["measured_peak_bytes"])


def line(name: str, task: str, rows: Sequence[Row]) -> str:
    """A row of the table; distances without their sign."""
    if not rows:
        return f"| {name} | {task} | 0 |{' |' * 7}"
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


def has_bounds(row: Row) -> bool:
    """Whether the data decides how much is needed, so that the trace gives a lower and an upper bound."""
    return row["trace_lower_bytes"] is not None and row["trace_upper_bytes"] is not None


def misses(row: Row) -> bool:
    """Whether the trace is further off than the criterion allows, or was not compared at all.

    Where the trace gives bounds, the measured peak has to lie between them.
    """
    measured, traced = row["measured_peak_bytes"], row["trace_peak_bytes"]
    if measured is None or traced is None:
        return True
    if has_bounds(row):
        lower, upper = row["trace_lower_bytes"], row["trace_upper_bytes"]
        return not lower - MOST_BYTES <= measured <= upper + MOST_BYTES
    return bool(abs(traced - measured) > max(MOST_BYTES, MOST_SHARE * measured))


def worst_bytes(rows: Iterable[Row]) -> int:
    return max((abs(row["trace_residual_bytes"]) for row in rows), default=0)


def failures(rows: Sequence[Row]) -> Iterator[str]:
    """The cells that miss the criterion, and those in which a lens failed, by name."""
    for row in rows:
        cell = f"{row['recipe']}, cell {row['cell']} ({row['model']}, {row['task']})"
        if row["trace_residual_bytes"] is not None and misses(row):
            off, operation = row["trace_residual_bytes"], row["measured_peak_operation"]
            yield f"- misses: {cell}: {off:+,} B at `{operation}`"
        if row["status"] != "ok":
            yield f"- {row['status']}: {cell}: {row['error']}"


if __name__ == "__main__":
    sys.exit(main())
