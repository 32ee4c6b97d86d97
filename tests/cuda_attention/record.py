"""Record attention for several cards: ``python -m tests.cuda_attention.record --python ENV``."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from benchmarks.rehearsal.stage import Stage
from mem_gpt_cli.devices.catalogue import find_gpu

RECORDED = Path(__file__).with_name("recorded.json")
CARDS: dict[str, tuple[str, ...]] = {
    "h100": ("flash", "efficient", "cudnn", "math"),
    "a100-80gb": ("flash", "efficient", "math"),
    "rtx-4090": ("flash", "efficient"),
    "t4": ("efficient",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", type=Path, required=True, help="of an environment with a CUDA build of torch"
    )
    python = parser.parse_args().python
    cards = [f"{json.dumps(card)}: {recorded(python, card, kernels)}" for card, kernels in CARDS.items()]
    RECORDED.write_text("{" + ",\n".join(cards) + "}\n", encoding="utf-8")


def recorded(python: Path, card: str, kernels: tuple[str, ...]) -> str:
    stage = Stage(python, find_gpu(card))
    command = [str(python), "-m", "tests.cuda_attention.play", *kernels]
    done = subprocess.run(command, env=stage.environment(), capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
