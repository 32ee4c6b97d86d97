"""``memgpt doctor --calibrate``, written where the stages after it find it."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.gpu.child import run_child
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.record import LeftOutError
from mem_gpt_cli.devices.calibration import VARIABLE, read_calibrations

NAME = "calibration.json"
STEP_S = 45
"""Each of the measurement's processes is ended after that."""


def run(kit: Kit, share: float) -> list[str]:
    """Calibrate the GPU, unless the folder holds a calibration already.

    Raises:
        RuntimeError: if the command fails.
    """
    if kit.device != "cuda":
        raise LeftOutError("there is no GPU to calibrate")
    path = kit.out / NAME
    os.environ[VARIABLE] = str(path.resolve())
    if read_calibrations(path):
        return []
    command = [
        sys.executable,
        "-m",
        "mem_gpt_cli.cli.main",
        "doctor",
        "--calibrate",
        "--timeout",
        str(STEP_S),
    ]
    try:
        done = run_child(command, kit.clock.left(share))
    except subprocess.TimeoutExpired:
        return ["calibration"]
    if done.returncode or not read_calibrations(path):
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"memgpt doctor --calibrate ended with {done.returncode}: {said}")
    return []
