"""A process on the rehearsed card: what it is told of the GPU, and how it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rehearsal.build import built, cuda_headers
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.errors import MemgptError

ROOT = Path(__file__).parents[2]
CONTEXT_BYTES = 520 * 1024**2
"""What the context is said to take; it only decides when the card is full."""


def exit_code(program: Callable[[], None]) -> int:
    """Run a program of the rehearsal: 0, or the code of an error that is told in a sentence."""
    try:
        program()
    except MemgptError as error:
        print(f"rehearsal: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


@dataclass(frozen=True)
class Stage:
    """A Python environment with a CUDA build of torch, and the GPU that it will believe to have."""

    python: Path
    gpu: Gpu

    def environment(self) -> dict[str, str]:
        """The environment of a process on this stage."""
        library = built(cuda_headers(self.python))
        return {
            **os.environ,
            "LD_PRELOAD": str(library),
            "LD_LIBRARY_PATH": str(library.parent),
            "PYTHONPATH": str(ROOT),
            "CUDA_MODULE_LOADING": "LAZY",
            "REHEARSED_PRODUCT": self.gpu.product,
            "REHEARSED_CAPABILITY": "{}.{}".format(*self.gpu.capability),
            "REHEARSED_MULTIPROCESSORS": str(self.gpu.multiprocessors),
            "REHEARSED_TOTAL_BYTES": str(self.gpu.total_bytes),
            "REHEARSED_CONTEXT_BYTES": str(CONTEXT_BYTES),
        }

    def perform(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run ``benchmarks.rehearsal.play`` on one job in a process of its own and return its answer."""
        command = [str(self.python), "-m", "benchmarks.rehearsal.play"]
        done = subprocess.run(
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=self.environment(),
            check=False,
        )
        try:
            answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            tail = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            return {"status": "error", "error": tail[0]}
        return answer
