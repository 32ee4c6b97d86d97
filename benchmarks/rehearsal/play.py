"""Inside a rehearsal: run one recipe as ``memgpt profile`` would, and say what torch's allocator counted.

Reads a job as JSON on stdin (``recipe``: file or null, ``overrides``: list, ``history``: file or null) and
writes an answer as JSON on stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from mem_gpt_cli.profile.lens import prepare
from mem_gpt_cli.profile.run import run
from mem_gpt_cli.recipe import load_recipe

HISTORY_ENTRIES = 10_000_000
PEAKS = {
    "allocated_bytes": "allocated_bytes.all.peak",
    "requested_bytes": "requested_bytes.all.peak",
    "reserved_bytes": "reserved_bytes.all.peak",
    "segments": "segment.all.peak",
}


class Counts:
    """An observer that notes the allocator's peaks of each phase, the largest of all its steps.

    An allocation's entry in the history carries the phase and how often that was entered before, as
    ``forward:1``; after it ``after forward:1``. Those of autograd's own threads carry nothing.
    """

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, int]] = {}
        self._entered: Counter[str] = Counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count from here to the end of the block."""
        span = f"{name}:{self._entered[name]}"
        self._entered[name] += 1
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.memory._set_memory_metadata(span)
        yield
        torch.cuda.memory._set_memory_metadata(f"after {span}")
        stats = torch.cuda.memory_stats()
        seen = {column: stats[key] for column, key in PEAKS.items()}
        before = self.phases.setdefault(name, seen)
        self.phases[name] = {column: max(before[column], value) for column, value in seen.items()}

    def mark(self, component: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """No-op: the allocator knows no components."""


def perform(job: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe and return the counts by phase."""
    recipe = load_recipe(job["recipe"], overrides=[*job["overrides"], "device.name=cuda"])
    if job["history"]:
        torch.cuda.memory._record_memory_history(
            max_entries=HISTORY_ENTRIES, stacks="python", context="alloc"
        )
    counts = Counts()
    answer: dict[str, Any] = {"status": "ok"}
    try:
        run(prepare(recipe), counts)
    except torch.OutOfMemoryError as full:
        answer = {"status": "oom", "error": str(full).splitlines()[0]}
    if job["history"]:
        Path(job["history"]).write_text(json.dumps(torch.cuda.memory._snapshot(), default=str))
    return {**answer, "torch": torch.__version__, "phases": counts.phases, "host_reads": host_reads()}


def host_reads() -> int:
    """How often the host asked the device for a value, which no kernel had computed."""
    reads = ctypes.CDLL("libcuda.so.1").rehearsal_reads
    reads.restype = ctypes.c_size_t
    return int(reads())


if __name__ == "__main__":
    given = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        answer = perform(given)
    print(json.dumps(answer))
