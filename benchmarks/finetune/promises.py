"""Three promises of training in little memory, measured at real shapes, with the slowdown beside each.

    python -m benchmarks.finetune.promises         # some minutes; writes results/promises.csv

GPT-2 has its shape and random weights, SmolLM2 its own (`make smollm2`): memory and speed depend on no
value. Every run is `memgpt profile` in a process of its own: two training steps of AdamW in fp32.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "results" / "promises.csv"
MODELS = ("gpt2", "smollm2-135m")
Report = dict[str, Any]


def peak(report: Report) -> int:
    """All tensors at the highest point of the run."""
    return int(report["peak"]["allocated_bytes"])


def highest(component: str) -> Callable[[Report], int]:
    """The most that a component holds at a phase's peak."""
    return lambda report: max(int(phase["components"][component]) for phase in report["phases"])


@dataclass(frozen=True)
class Promise:
    """What an option is promised to save, of what, and the recipe keys that turn it on."""

    name: str
    of: str
    promised_percent: float
    aimed_percent: float
    options: Mapping[str, str]
    figure: Callable[[Report], int]


QLORA = {"adapters.kind": "qlora"}
FULL = {"checkpointing.policy": "full"}
CHUNKED = {"loss.kind": "chunked", "loss.chunk": "128"}
PROMISES = (
    Promise("QLoRA alone", "peak of the run", 65, 80, QLORA, peak),
    Promise("QLoRA, checkpointed, chunked loss", "peak of the run", 65, 80, QLORA | FULL | CHUNKED, peak),
    Promise("checkpointing: full", "activations", 40, 70, FULL, highest("activations")),
    Promise(
        "checkpointing: selective",
        "activations",
        40,
        40,
        {"checkpointing.policy": "selective"},
        highest("activations"),
    ),
    Promise("loss: chunked", "logits", 75, 75, CHUNKED, highest("logits")),
)
COLUMNS = (
    "model", "batch", "seq", "promise", "of", "promised_percent", "aimed_percent", "full_bytes", "bytes",
    "saved_percent", "verdict", "full_step_s", "step_s", "slowdown", "full_peak_bytes", "peak_bytes",
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
    base = profile(model, batch, seq, {})
    for promise in PROMISES:
        report = profile(model, batch, seq, promise.options)
        before, after = promise.figure(base), promise.figure(report)
        saved = 100 * (1 - after / before)
        slow, fast = (float(one["speed"]["step_s"]) for one in (report, base))
        yield {
            "model": model,
            "batch": batch,
            "seq": seq,
            "promise": promise.name,
            "of": promise.of,
            "promised_percent": promise.promised_percent,
            "aimed_percent": promise.aimed_percent,
            "full_bytes": before,
            "bytes": after,
            "saved_percent": round(saved, 2),
            "verdict": "beaten" if saved >= promise.promised_percent else "missed",
            "full_step_s": round(fast, 3),
            "step_s": round(slow, 3),
            "slowdown": round(slow / fast, 3),
            "full_peak_bytes": peak(base),
            "peak_bytes": peak(report),
        }


def profile(model: str, batch: int, seq: int, options: Mapping[str, str]) -> Report:
    """The report of a training; full fine-tuning in fp32 but for ``options``."""
    command = [sys.executable, "-m", "mem_gpt_cli", "profile", "--model", model, "--task", "training"]
    command += ["--batch", str(batch), "--seq", str(seq), "--json"]
    command += [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: Report = json.loads(done.stdout)
    return report


if __name__ == "__main__":
    main()
