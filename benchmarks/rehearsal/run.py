"""Rehearse recipes on a GPU that is not there.

``python -m benchmarks.rehearsal.run --python ENV --gpu h100 --cells benchmarks/rehearsal/cells.txt``
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.rehearsal.stage import Stage, exit_code
from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.errors import UsageError

COLUMNS = (
    "gpu", "cell", "status", "phase", "allocated_bytes", "requested_bytes", "reserved_bytes", "segments",
    "host_reads", "torch", "error",
)  # fmt: skip


def main() -> None:
    """Rehearse every cell and write a row for each of its phases."""
    asked = arguments()
    stage = Stage(asked.python, find_gpu(asked.gpu))
    cells = read_cells(asked.cells) if asked.cells else [" ".join(asked.set)]
    with asked.csv.open("a", newline="") if asked.csv else sys.stdout as out:
        writer = csv.DictWriter(out, COLUMNS)
        if not asked.csv or not asked.csv.stat().st_size:
            writer.writeheader()
        for cell in cells:
            if not cell.strip() or cell.startswith("#"):
                continue
            began = time.monotonic()
            job = {"recipe": asked.recipe, "overrides": cell.split(), "history": asked.history}
            answer = stage.perform(job)
            writer.writerows(rows(asked.gpu, cell, answer))
            out.flush()
            print(f"{answer['status']:6} {time.monotonic() - began:5.1f} s  {cell}", file=sys.stderr)


def read_cells(path: Path) -> list[str]:
    """The lines of a file of cells.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise UsageError(f"--cells {path}: {error.strerror}") from error


def rows(gpu: str, cell: str, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each phase; one row without figures where nothing ran."""
    common = {
        "gpu": gpu,
        "cell": cell,
        **{key: answer.get(key) for key in ("status", "host_reads", "torch", "error")},
    }
    phases = answer.get("phases") or {"": {}}
    return [{**common, "phase": name, **counts} for name, counts in phases.items()]


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", type=Path, required=True, help="of an environment with a CUDA build of torch"
    )
    parser.add_argument("--gpu", default="h100", help="a name of the GPU catalogue")
    parser.add_argument("--recipe", help="a recipe file that every cell starts from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one cell")
    parser.add_argument("--cells", type=Path, help="a file with a cell a line: KEY=VALUE KEY=VALUE ...")
    parser.add_argument("--csv", type=Path, help="append to this file instead of printing")
    parser.add_argument("--history", help="write the allocator's history of the last cell here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(exit_code(main))
