"""The rehearsal: traces beside torch's own CUDA host code, and the tool that tells where they part.

What needs torch's CUDA build is skipped unless ``MEMGPT_CUDA_PYTHON`` names a Python that has one.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from benchmarks.rehearsal.compare import distances
from benchmarks.rehearsal.difference import differences, rehearsed, traced
from benchmarks.rehearsal.stage import Stage
from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.trace import trace

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "rehearsal_cuda.csv"
PYTHON = os.environ.get("MEMGPT_CUDA_PYTHON")
CELL = ("model.name=gpt2", "model.config.n_layer=2", "task=training", "workload.seq=64")


@pytest.mark.skipif(not PYTHON, reason="MEMGPT_CUDA_PYTHON is not set")
@pytest.mark.parametrize("gpu", ["h100", "a100-80gb"])
def test_a_trace_equals_torchs_own_host_code(gpu: str) -> None:
    answer = Stage(Path(PYTHON or ""), find_gpu(gpu)).perform(
        {"recipe": None, "overrides": list(CELL), "history": None}
    )
    assert answer["status"] == "ok", answer
    report = trace(load_recipe(None, overrides=[*CELL, f"device.name={gpu}"]))
    for phase in report.phases:
        there = answer["phases"][phase.name]
        assert phase.peak_allocated_bytes == there["allocated_bytes"]
        assert phase.reserved_bytes == there["reserved_bytes"]


def off(rows: list[dict[str, str]], figure: str) -> float:
    """The worst distance in percent."""
    return max(abs(float(row[f"{figure}_difference_percent"])) for row in rows)


def test_the_committed_rows_are_as_near_as_the_page_says() -> None:
    """Experts are left out: a rehearsal has no data, so that its routing is not a run's."""
    with RESULTS.open(newline="") as text:
        rows = [row for row in csv.DictReader(text) if row["phase"]]
    chosen = set((ROOT / "benchmarks" / "rehearsal" / "cells.txt").read_text().splitlines())
    ours = [row for row in rows if row["cell"] in chosen]
    others = [row for row in rows if row["cell"] not in chosen]
    dense = [row for row in others if "mixtral" not in row["cell"] and "deepseek" not in row["cell"]]
    assert len({(row["gpu"], row["cell"]) for row in ours}) == 54
    assert off(ours, "allocated") < 0.01
    assert off(ours, "reserved") < 0.5
    assert off(dense, "allocated") < 0.5
    assert off(dense, "reserved") < 5
    for row in rows:
        more = int(row["traced_allocated_bytes"]) - int(row["rehearsed_allocated_bytes"])
        assert more == int(row["allocated_difference_bytes"])
    assert "phases equal" in distances(rows)


def test_the_difference_tells_what_only_one_of_both_allocates(tmp_path: Path) -> None:
    history, events = tmp_path / "history.json", tmp_path / "events.jsonl"
    entries = [
        {"action": "alloc", "addr": 1, "size": 500, "user_metadata": "forward:0"},
        {"action": "alloc", "addr": 2, "size": 4096, "user_metadata": "forward:0"},
        {"action": "free_completed", "addr": 2, "size": 4096, "user_metadata": "forward:0"},
    ]
    history.write_text(json.dumps({"device_traces": [entries]}))
    header = {"spans": [["forward", 0]], "operations": [[0, "aten.add.Tensor", "mlp"]]}
    lines = [header, [0, 512, 0, "activations"], [1, 1024, 0, "workspace"], [1, -1024, 0, "workspace"]]
    events.write_text("\n".join(map(json.dumps, lines)))
    told = list(differences(rehearsed(history), traced(events)))
    assert told[0] == "forward:0: 3 rehearsed, 3 traced, 1 stretches differ"
    assert any("rehearsed           4,096" in line for line in told)
    assert any("traced              1,024  aten.add.Tensor mlp" in line for line in told)
    assert not any(line.strip().endswith(" 512") for line in told)
