"""Run any Python program on the rehearsed card.

``python -m benchmarks.rehearsal.on --python ENV --gpu h100 -- -m mem_gpt_cli profile --device cuda``
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.rehearsal.stage import Stage, exit_code
from mem_gpt_cli.devices.catalogue import find_gpu


def main() -> None:
    """Become the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", type=Path, required=True, help="of an environment with a CUDA build of torch"
    )
    parser.add_argument("--gpu", default="h100", help="a name of the GPU catalogue")
    parser.add_argument("program", nargs="+", help="what python is given: a script, or -m and a module")
    asked = parser.parse_args()
    stage = Stage(asked.python, find_gpu(asked.gpu))
    print(
        f"a rehearsal: there is no {stage.gpu.product} here, and no figure is a measurement", file=sys.stderr
    )
    os.execve(asked.python, [str(asked.python), *asked.program], stage.environment())


if __name__ == "__main__":
    sys.exit(exit_code(main))
