"""Trace and run every registered causal language model: ``python -m benchmarks.coverage.run``."""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.coverage import table
from benchmarks.coverage.small import model_types

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "results" / "coverage.csv", ROOT / "docs" / "coverage.md"
TYPES_A_PROCESS = 12


class Workers:
    """One worker process at a time, replaced when it dies, hangs or has examined enough."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._examined = 0

    def examine(self, model_type: str) -> dict[str, Any]:
        """A worker's answer, or why there is none."""
        if self._process is None or self._examined == TYPES_A_PROCESS:
            self.stop()
            command = [sys.executable, "-m", "benchmarks.coverage.worker"]
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._examined += 1
        print(model_type, file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], self._timeout_s)
        answer = self._process.stdout.readline() if ready else ""
        if answer:
            return dict(json.loads(answer))
        why = "the process died" if ready else f"no answer within {self._timeout_s:.0f} s"
        self.stop()
        return {"model_type": model_type, "constructs": False, "reason": why}

    def stop(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process, self._examined = None, 0


def versions() -> str:
    """What the figures hold for."""
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage.run", description=__doc__)
    parser.add_argument(
        "types", nargs="*", help="model types to examine anew; all that are missing by default"
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds a model type may take")
    parser.add_argument(
        "--page-only", action="store_true", help="write docs/coverage.md from the CSV and end"
    )
    options = parser.parse_args()
    rows = table.read(RESULTS)
    registered = model_types()
    wanted = options.types or [name for name in registered if name not in rows]
    workers = Workers(options.timeout)
    for name in () if options.page_only else wanted:
        found = workers.examine(name)
        rows[name] = table.flat(found)
        table.write(RESULTS, rows.values())
        print(
            name, *(rows[name][f"{task}_{c}"] for task in table.TASKS for c in ("residual_bytes", "reason"))
        )
    workers.stop()
    PAGE.write_text(table.page(rows, versions()))


if __name__ == "__main__":
    main()
