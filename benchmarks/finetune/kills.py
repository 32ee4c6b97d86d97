"""Kills a fine-tune by SIGKILL at random moments, resumes it, and compares the final weights.

    python -m benchmarks.finetune.kills            # 20 kills, minutes; writes results/finetune_kills.csv

Each kill is of a run of its own, which is then resumed to its end. The moments are drawn evenly over the
steps and what lies between two of them, whatever else the machine does; the model is small and a checkpoint
is written every other step, so that many fall into writing one.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RESULTS = Path(__file__).parents[2] / "results" / "finetune_kills.csv"
COLUMNS = (
    "kill", "at_step", "steps_done", "checkpoint", "unfinished", "resumed_from", "sha256", "identical",
)  # fmt: skip
LOOKS_S = 0.002
"""Seconds between two looks at how far a run is."""
OPTIONS = (
    "--model", "memgpt-tiny", "--set", "model.config.n_layer=2", "--set", "model.weights=random",
    "--set", "model.dropout=0.1", "--data", "sample", "--batch", "2", "--seq", "64", "--lr", "1e-3",
    "--set", "finetune.checkpoint_every=2", "--set", "finetune.evaluate_tokens=256",
    "--set", "device.threads=1",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder, asked.csv.open("w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        rows.writeheader()
        alike = 0
        for row in kills(Path(folder), asked.kills, asked.steps, random.Random(asked.seed)):
            rows.writerow(row)
            file.flush()
            alike += row["identical"] == "true"
            print(*(f"{key} {value}" for key, value in row.items() if key != "sha256"), sep=", ", flush=True)
    print(f"{alike} of {asked.kills} runs ended with the weights of the undisturbed one")
    sys.exit(alike != asked.kills)


def kills(folder: Path, count: int, steps: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    """The rows: each a run that was killed, and what became of it."""
    begun = time.monotonic()
    expected = weights(finished(folder / "undisturbed", steps))
    step_s = (time.monotonic() - begun) / steps
    for number in range(1, count + 1):
        out = folder / f"killed-{number}"
        moment = draw.uniform(0, steps)
        while not kill(out, steps, moment, step_s):  # it was over before
            shutil.rmtree(out)
            moment = draw.uniform(0, moment)
        row: dict[str, Any] = {"kill": number, "at_step": round(moment, 2)}
        row |= left_behind(out)
        account = finished(out, steps, "--resume")
        found = weights(account)
        row |= {"resumed_from": account["resumed_from"], "sha256": found}
        yield row | {"identical": str(found == expected).lower()}


def command(out: Path, steps: int, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "mem_gpt_cli", "finetune", *OPTIONS),
        *("--steps", str(steps), "--out", str(out), "--json", *more),
    ]


def finished(out: Path, steps: int, *more: str) -> dict[str, Any]:
    done = subprocess.run(command(out, steps, *more), check=True, capture_output=True, text=True)
    account: dict[str, Any] = json.loads(done.stdout)
    return account


def kill(out: Path, steps: int, moment: float, step_s: float) -> bool:
    """Start a run and end it so many steps later, by the signal that no process can catch; false if it was
    over before.
    """
    process = subprocess.Popen(
        command(out, steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and steps_done(out) < int(moment):
        time.sleep(LOOKS_S)
    time.sleep(moment % 1 * step_s)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def steps_done(out: Path) -> int:
    """Steps that a run has written down."""
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def left_behind(out: Path) -> dict[str, Any]:
    """How far a killed run was, and whether it was writing a checkpoint."""
    folder = out / "checkpoints"
    whole = sorted(folder.glob("step-*"))
    return {
        "steps_done": steps_done(out),
        "checkpoint": int(whole[-1].name.removeprefix("step-")) if whole else None,
        "unfinished": str(any(folder.glob(".*"))).lower(),
    }


def weights(account: dict[str, Any]) -> str:
    """What stands for the trained weights: the digest of their file."""
    return hashlib.sha256((Path(account["result"]) / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
