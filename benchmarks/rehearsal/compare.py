"""Traced beside rehearsed: ``python -m benchmarks.rehearsal.compare OUT.csv --csv results/x.csv``.

Traces every recipe that ``run`` has rehearsed, with the torch and transformers of this environment, and
writes both figures of each phase side by side; then says how far apart they are.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.report.model import MemoryReport
from mem_gpt_cli.trace import trace

FIGURES = ("allocated", "reserved")
COLUMNS = (
    "gpu", "cell", "phase",
    *(f"{lens}_{figure}_bytes" for figure in FIGURES for lens in ("rehearsed", "traced")),
    *(f"{figure}_difference_{unit}" for figure in FIGURES for unit in ("bytes", "percent")),
    "rehearsed_torch", "traced_torch", "traced_transformers", "error",
)  # fmt: skip

Row = dict[str, object]


def main() -> None:
    """Trace each rehearsed cell that is not yet in the CSV; print the distances of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rehearsed", type=Path, nargs="+", help="CSVs that `run` wrote")
    parser.add_argument("--csv", type=Path, required=True, help="append here; cells that it has are left out")
    asked = parser.parse_args()
    done = {(row["gpu"], row["cell"]) for row in rows_of(asked.csv)} if asked.csv.exists() else set()
    with asked.csv.open("a", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for (gpu, cell), phases in cells(asked.rehearsed):
            if (gpu, cell) not in done:
                writer.writerows(compared(gpu, cell, phases))
                out.flush()
    print(distances(list(rows_of(asked.csv))))


def cells(files: Sequence[Path]) -> Iterator[tuple[tuple[str, str], Mapping[str, Mapping[str, str]]]]:
    """Each cell that was rehearsed to its end, with its rows by phase."""
    found: defaultdict[tuple[str, str], dict[str, Mapping[str, str]]] = defaultdict(dict)
    for file in files:
        for row in rows_of(file):
            if row["status"] == "ok":
                found[row["gpu"], row["cell"]][row["phase"]] = row
    yield from found.items()


def compared(gpu: str, cell: str, phases: Mapping[str, Mapping[str, str]]) -> Iterator[Row]:
    """A row for each phase of a cell; one with the sentence where it cannot be traced."""
    torch_there = next(iter(phases.values()))["torch"]
    common: Row = {
        "gpu": gpu,
        "cell": cell,
        "rehearsed_torch": torch_there,
        "traced_torch": version("torch"),
        "traced_transformers": version("transformers"),
    }
    try:
        report = trace(load_recipe(None, overrides=[*cell.split(), f"device.name={gpu}"]), full_depth=True)
    except MemgptError as error:
        yield {**common, "error": str(error)}
        return
    for name, rehearsed in phases.items():
        yield {**common, "phase": name, **figures(report, name, rehearsed)}


def figures(report: MemoryReport, name: str, rehearsed: Mapping[str, str]) -> Row:
    """Both figures of a phase, and what the trace has more."""
    phase = report.phase(name)
    assert phase is not None
    traced = {"allocated": phase.peak_allocated_bytes, "reserved": phase.reserved_bytes or 0}
    row: Row = {}
    for figure in FIGURES:
        there = int(rehearsed[f"{figure}_bytes"])
        more = traced[figure] - there
        row |= {
            f"rehearsed_{figure}_bytes": there,
            f"traced_{figure}_bytes": traced[figure],
            f"{figure}_difference_bytes": more,
            f"{figure}_difference_percent": f"{100 * more / there:.4f}",
        }
    return row


def distances(rows: Sequence[Mapping[str, str]]) -> str:
    """How far apart the phases are: how many are equal, the median and the worst."""
    lines = []
    for figure in FIGURES:
        told = [row for row in rows if row[f"{figure}_difference_bytes"]]
        off = [abs(float(row[f"{figure}_difference_percent"])) for row in told]
        equal = sum(row[f"{figure}_difference_bytes"] == "0" for row in told)
        worst = max(told, key=lambda row: abs(float(row[f"{figure}_difference_percent"])))
        lines.append(
            f"{figure}: {equal} of {len(told)} phases equal, median {median(off):.4f}%, "
            f"worst {max(off):.4f}% ({worst['gpu']}, {worst['phase']}: {worst['cell']})"
        )
    return "\n".join(lines)


def rows_of(file: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV."""
    with file.open(newline="") as text:
        yield from csv.DictReader(text)


if __name__ == "__main__":
    main()
