"""What all stages of one call share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.clock import Clock
from mem_gpt_cli.bench.limits import available_bytes
from mem_gpt_cli.devices.catalogue import gpu_of_product
from mem_gpt_cli.recipe import Recipe

MOST_WORKERS = 8


@dataclass(frozen=True)
class Kit:
    """One call of the kit.

    Args:
        device: ``cuda``, or ``cpu`` for a rehearsal.
        gpu: the name that the device is predicted by: the catalogue's, ``cuda`` for a GPU not in it, ``cpu``.
        out: the folder that the files go to.
        predictions: the committed predictions for that device, and ``predictions_blob`` git's hash of them.
        memory_bytes: what the device has; ``None`` if unknown.
        workers: how many cells may run at once, at most.
        pattern: which cells to run.
        started: when the call began, ISO 8601 in UTC.
        clock: how much of its time is left.
    """

    device: Literal["cuda", "cpu"]
    gpu: str
    out: Path
    predictions: Path
    predictions_blob: str | None
    memory_bytes: int | None
    workers: int
    pattern: str
    started: str
    clock: Clock

    def say(self, line: str) -> None:
        """Tell whoever watches, with the seconds that have passed."""
        passed = self.clock.limit_s - self.clock.left()
        print(f"{passed:5.0f} s  {line}", file=sys.stderr, flush=True)


def name_of_device(facts: Mapping[str, Any]) -> str:
    """What a recipe calls the device that the facts tell of."""
    gpu = facts["gpu"]
    if gpu is None:
        return "cpu"
    known = gpu_of_product(gpu["product"], gpu["total_bytes"])
    return known.name if known else "cuda"


def memory_of(facts: Mapping[str, Any]) -> int | None:
    """Bytes that the device has; of the CPU's, those that are free."""
    if facts["gpu"] is None:
        return available_bytes(Recipe())
    total: int = facts["gpu"]["total_bytes"]
    return total


def workers_for(facts: Mapping[str, Any]) -> int:
    """Cells at once: half the cores, since each has a process that tracks its storages."""
    return max(1, min(MOST_WORKERS, (facts["cores"] or 1) // 2))
