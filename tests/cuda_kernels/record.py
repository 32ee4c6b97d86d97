"""Record what operators allocate, for several cards: ``python -m tests.cuda_kernels.record --python ENV``."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from benchmarks.rehearsal.stage import Stage
from mem_gpt_cli.devices.catalogue import find_gpu

RECORDED = Path(__file__).with_name("recorded.json")
CARDS = ("h100", "a100-80gb", "rtx-4090")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", type=Path, required=True, help="of an environment with a CUDA build of torch"
    )
    python = parser.parse_args().python
    rows: dict[str, list[str]] = {card: recorded(Stage(python, find_gpu(card))) for card in CARDS}
    asked = [python, "-c", "import torch; print(torch.__version__)"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    cards = [f"{json.dumps(card)}: [\n" + ",\n".join(lines) + "\n]" for card, lines in rows.items()]
    text = "{" + ",\n".join([f'"torch": {json.dumps(version)}', *cards]) + "}\n"
    RECORDED.write_text(text, encoding="utf-8")


def recorded(stage: Stage) -> list[str]:
    command = [str(stage.python), "-m", "tests.cuda_kernels.cases"]
    done = subprocess.run(command, env=stage.environment(), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


if __name__ == "__main__":
    main()
