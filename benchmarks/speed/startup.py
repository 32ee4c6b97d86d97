"""What `memgpt estimate` costs beside the imports that any tool of its kind pays for.

Runs two commands in turn (A B A B ...) so that a busy machine slows both alike, takes the processor time of
each child process from the kernel (user + system, as `os.wait4` reports it), and writes the medians, their
ratio and every raw figure as JSON::

    python benchmarks/speed/startup.py --output results/startup.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

GOAL = 2.5
BASELINE = [sys.executable, "-c", "import typer, rich, pydantic, yaml"]
MEMGPT = [
    sys.executable,
    "-c",
    "from mem_gpt_cli.cli.main import main; main()",
]  # as the installed script does
ESTIMATE = [*MEMGPT, "estimate", "--model", "gpt2-xl", "--seq", "4096"]
PACKAGES = ("typer", "rich", "pydantic", "pyyaml")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""pip compiles what it installs; an editable checkout is compiled when first imported. Where the variable
forbids that, memgpt would be compiled anew at every start, and the packages of the baseline would not.
"""


def processor_seconds(command: list[str]) -> float:
    """User and system seconds of one run of ``command``.

    Raises:
        RuntimeError: if it fails: the time of a failure says nothing.
    """
    discard = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    child = os.posix_spawn(command[0], command, ENVIRONMENT, file_actions=discard)
    _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime


def measure(pairs: int) -> dict[str, Any]:
    """Both commands ``pairs`` times in turn, after one of each: it fills the caches, bytecode included."""
    for command in (BASELINE, ESTIMATE):
        processor_seconds(command)
    baseline, estimate = [], []
    for _ in range(pairs):
        baseline.append(processor_seconds(BASELINE))
        estimate.append(processor_seconds(ESTIMATE))
    ratio = statistics.median(estimate) / statistics.median(baseline)
    return {
        "baseline_command": BASELINE[1:],
        "estimate_command": ESTIMATE[1:],
        "pairs": pairs,
        "baseline_median_cpu_s": statistics.median(baseline),
        "estimate_median_cpu_s": statistics.median(estimate),
        "ratio": ratio,
        "goal_ratio": GOAL,
        "goal_met": ratio <= GOAL,
        "baseline_cpu_s": baseline,
        "estimate_cpu_s": estimate,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15, help="runs of each command (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.pairs), indent=2)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
