"""Start-up and trace times, written to ``results/speed.json``: ``make speed``, best on a quiet machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.speed import startup, tracing

RESULTS = Path(__file__).parents[2] / "results" / "speed.json"
PAIRS = 15


def main() -> None:
    """Measure and write."""
    figures = {
        "load_average": os.getloadavg()[0],
        "startup": startup.measure(PAIRS),
        "tracing": tracing.measure(),
    }
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"start-up: {figures['startup']['ratio']:.2f} times its imports (goal {startup.GOAL})")
    for name, figure in figures["tracing"]["traces"].items():
        goal = tracing.GOALS_S[name.split()[-1]]
        seconds = f"{figure['wall_s']:.2f} s, {figure['processor_s']:.2f} s of processor"
        print(f"trace of {name}: {seconds} (goal {goal} s)")
    print(f"torch's own tracker takes {figures['tracing']['mem_tracker']['ratio']:.1f} times as long")


if __name__ == "__main__":
    main()
