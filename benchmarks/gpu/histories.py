"""Allocator histories of a few small cells, one JSON object a line, for the tests of the replay.

A line is what ``mem_gpt_cli.allocator.history.write_history`` writes, and the cell's ``name``, ``recipe`` and
``measured`` peaks. As a program, it records the recipe on stdin: ``python -m benchmarks.gpu.histories FILE``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import KitCell, cells_of
from benchmarks.gpu.child import run_child
from benchmarks.gpu.crew import LEAST_S
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.record import LeftOutError
from mem_gpt_cli.bench.worker import environment_of
from mem_gpt_cli.recipe import Recipe, resolved

NAME = "histories.jsonl"
MOST_BYTES = 5 * 2**20
MOST_ENTRIES = 1_000_000


def run(kit: Kit, share: float) -> list[str]:
    """Record each cell in a process of its own; returns the names of those that time was too short for."""
    if kit.device != "cuda":
        raise LeftOutError("only CUDA's allocator keeps a history")
    path = kit.out / NAME
    done = {json.loads(line)["name"] for line in _whole(path).splitlines()}
    left = []
    for cell in cells_of(kit.device, "histories", kit.pattern):
        seconds = kit.clock.left(share)
        if cell.name not in done and (seconds < LEAST_S or not _append(path, cell, kit, seconds)):
            left.append(cell.name)
    return left


def _append(path: Path, cell: KitCell, kit: Kit, seconds: float) -> bool:
    """Add a cell's line; ``False`` where time was too short.

    Raises:
        RuntimeError: if the recording process fails, or the file would become too large.
    """
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "history.json"
        recipe = cell.on(kit.device)
        try:
            done = run_child(
                [sys.executable, "-m", "benchmarks.gpu.histories", str(recorded)],
                seconds,
                text=json.dumps(resolved(recipe)),
                environment=environment_of(recipe.device.allocator),
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode:
            raise RuntimeError(f"{cell.name}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        measured = json.loads(done.stdout.splitlines()[-1])
        about = {"name": cell.name, "recipe": resolved(recipe), "measured": measured}
        line = json.dumps(about | json.loads(recorded.read_text()), separators=(",", ":")) + "\n"
    text = _whole(path) + line
    if len(text) > MOST_BYTES:
        raise RuntimeError(f"{cell.name}: its history of {len(line):,} B would make the file too large")
    _replace(path, text)
    kit.say(f"{cell.name}: a history of {len(line):,} B")
    return True


def _whole(path: Path) -> str:
    """The whole lines of the file, without a last one that has no end; nothing without a file."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def _replace(path: Path, text: str) -> None:
    """Write the file anew beside itself: a line is long enough to be killed in, and tests read it."""
    beside = path.with_suffix(".tmp")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def record(recipe: Recipe, path: Path) -> dict[str, Any]:
    """Run a recipe on this machine's GPU with the allocator's history on; the allocator's peaks in bytes."""
    import torch

    from mem_gpt_cli.allocator.history import write_history
    from mem_gpt_cli.profile.lens import prepare
    from mem_gpt_cli.profile.run import run as run_job
    from mem_gpt_cli.workload.observer import Unobserved

    job = prepare(recipe)
    torch.cuda.memory._record_memory_history("all", context=None, max_entries=MOST_ENTRIES)
    run_job(job, Unobserved())
    snapshot = torch.cuda.memory._snapshot()
    about = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    write_history(snapshot, path, about)
    return {
        "max_allocated_bytes": torch.cuda.max_memory_allocated(),
        "max_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


if __name__ == "__main__":
    asked = Recipe.model_validate_json(sys.stdin.read())
    print(json.dumps(record(asked, Path(sys.argv[1]))))
