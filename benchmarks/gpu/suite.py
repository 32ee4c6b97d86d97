"""The tests that need a GPU, by pytest: ``tests.txt``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu import ROOT
from benchmarks.gpu.child import run_child
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.record import LeftOutError

NAME = "tests.txt"
CONFIGURATION = Path(__file__).with_name("pytest.ini")
MARK = "gpu"
NO_TESTS = 5


def run(kit: Kit, share: float) -> list[str]:
    """Run them; ``tests`` is returned as left over where they were ended.

    Raises:
        RuntimeError: if one fails.
    """
    files = gpu_test_files()
    if not files:
        raise LeftOutError("no test is marked as needing a GPU")
    if find_spec("pytest") is None:
        raise LeftOutError("pytest is not installed here: `make gpu-wheels` brings it along")
    options = ["-c", str(CONFIGURATION), "--rootdir", str(ROOT), "-m", MARK, "-v"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    with (kit.out / NAME).open("w") as file:
        try:
            done = run_child(command, kit.clock.left(share), output=file)
        except subprocess.TimeoutExpired:
            return ["tests"]
    if done.returncode not in (0, NO_TESTS):
        raise RuntimeError(f"pytest ended with {done.returncode}: see {NAME}")
    return []


def gpu_test_files() -> Sequence[str]:
    """The files that hold such tests: others may want packages that are not on the GPU's machine."""
    # By name backwards: the slowest, test_calibration, comes last.
    backwards = sorted((ROOT / "tests").glob("test_*.py"), reverse=True)
    mark = f"pytest.mark.{MARK}"
    return [str(path) for path in backwards if mark in path.read_text()]
