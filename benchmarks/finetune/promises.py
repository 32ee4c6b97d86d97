"""Three promises of training in little memory, measured at real shapes, with the slowdown beside each.

    python -m benchmarks.finetune.promises         # some minutes; writes results/promises.csv

GPT-2 has its shape and random weights, SmolLM2 its own (`make smollm2`): memory and speed depend on no
value. Every run is `memgpt profile` in a process of its own: two training steps of AdamW in fp32, without
dropout, so that one kernel computes attention.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[2] / "results" / "promises.csv"
MODELS = ("gpt2", "smollm2-135m")
PEAK = "allocated"


class Run(NamedTuple):
    """One training: the most that it held in all and of each component, and how long a step took."""

    highest: Mapping[str, int]
    step_s: float


@dataclass(frozen=True)
class Promise:
    """What options are promised to save, of what, beside which others.

    Args:
        name: as it stands in the table.
        of: a component, whose own highest moment counts, or ``allocated``, the peak of the run.
        promised_percent: the promise.
        aimed_percent: what this project wants to reach.
        options: the recipe keys that turn it on.
        beside: recipe keys of both runs, with and without it.
    """

    name: str
    of: str
    promised_percent: float
    aimed_percent: float
    options: Mapping[str, str]
    beside: Mapping[str, str] = field(default_factory=dict)


QLORA = {"adapters.kind": "qlora"}
FULL = {"checkpointing.policy": "full"}
SELECTIVE = {"checkpointing.policy": "selective"}
CHUNKED = {"loss.kind": "chunked"}
SMALL_CHUNKS = CHUNKED | {"loss.chunk": "128"}
FRUGAL = FULL | SMALL_CHUNKS
PROMISES = (
    Promise("qlora", PEAK, 65, 80, QLORA),
    Promise("qlora, both checkpointed, loss chunked by 128", PEAK, 65, 80, QLORA, FRUGAL),
    Promise("qlora, checkpointed, loss chunked by 128, beside neither", PEAK, 65, 80, QLORA | FRUGAL),
    Promise("checkpointing full", "activations", 40, 70, FULL),
    Promise("checkpointing selective", "activations", 40, 40, SELECTIVE),
    Promise("loss chunked by 512 (default)", "logits", 75, 75, CHUNKED),
    Promise("loss chunked by 128", "logits", 75, 75, SMALL_CHUNKS),
)
COLUMNS = (
    "model", "batch", "seq", "promise", "of", "without_bytes", "with_bytes", "saved_percent",
    "promised_percent", "promise_kept", "aimed_percent", "aim_reached", "without_step_s", "with_step_s",
    "slowdown", "without_peak_bytes", "with_peak_bytes", "options", "beside",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=1024)
    asked = parser.parse_args()
    with asked.csv.open("w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        rows.writeheader()
        for model in asked.models:
            for row in measured(model, asked.batch, asked.seq):
                rows.writerow(row)
                file.flush()
                print(*(f"{key} {value}" for key, value in row.items()), sep=", ", flush=True)


def measured(model: str, batch: int, seq: int) -> Iterator[dict[str, Any]]:
    """One row a promise."""
    runs: dict[str, Run] = {}

    def run(options: Mapping[str, str]) -> Run:
        key = written(options)
        if key not in runs:
            runs[key] = profile(model, batch, seq, options)
        return runs[key]

    for promise in PROMISES:
        before, after = run(promise.beside), run({**promise.beside, **promise.options})
        saved = 100 * (1 - after.highest[promise.of] / before.highest[promise.of])
        yield {
            "model": model,
            "batch": batch,
            "seq": seq,
            "promise": promise.name,
            "of": promise.of,
            "without_bytes": before.highest[promise.of],
            "with_bytes": after.highest[promise.of],
            "saved_percent": round(saved, 2),
            "promised_percent": promise.promised_percent,
            "promise_kept": str(saved >= promise.promised_percent).lower(),
            "aimed_percent": promise.aimed_percent,
            "aim_reached": str(saved >= promise.aimed_percent).lower(),
            "without_step_s": round(before.step_s, 3),
            "with_step_s": round(after.step_s, 3),
            "slowdown": round(after.step_s / before.step_s, 3),
            "without_peak_bytes": before.highest[PEAK],
            "with_peak_bytes": after.highest[PEAK],
            "options": written(promise.options),
            "beside": written(promise.beside),
        }


def written(options: Mapping[str, str]) -> str:
    """Recipe keys in one line."""
    return " ".join(f"{key}={value}" for key, value in options.items())


def profile(model: str, batch: int, seq: int, options: Mapping[str, str]) -> Run:
    """A training in fp32 without dropout: in full, but for ``options``."""
    command = [sys.executable, "-m", "mem_gpt_cli", "profile", "--model", model, "--task", "training"]
    command += ["--batch", str(batch), "--seq", str(seq), "--json", "--set", "model.dropout=0"]
    command += [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    with TemporaryDirectory() as folder:
        curves = Path(folder) / "timeline.csv"
        done = subprocess.run(
            [*command, "--timeline", str(curves)], check=True, stdout=subprocess.PIPE, text=True
        )
        with curves.open(newline="") as file:
            names, *moments = csv.reader(file)
    highest = {
        name.removesuffix("_bytes"): max(map(int, values))
        for name, values in zip(names, zip(*moments, strict=True), strict=True)
        if name.endswith("_bytes")
    }
    report = json.loads(done.stdout)
    assert highest[PEAK] == report["peak"]["allocated_bytes"]
    return Run(highest, float(report["speed"]["step_s"]))


if __name__ == "__main__":
    main()
