"""How long a trace takes, and how that compares with torch's own memory tracker on the same training step.

Each figure is taken in a process of its own, after all imports. Seconds depend on the machine; the ratio to
``torch.distributed._tools.mem_tracker`` is one of two runs on the same machine, in turn::

    python -m benchmarks.speed.tracing
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

TRACES = {
    "gpt2-xl inference": ["model.name=gpt2-xl", "workload.seq=1024"],
    "gpt2-xl training": ["model.name=gpt2-xl", "workload.seq=1024", "task=training"],
    "llama-70b inference": ["model.name=llama-3-70b", "workload.seq=4096"],
    "llama-70b training": ["model.name=llama-3-70b", "workload.seq=4096", "task=training"],
}
GOALS_S = {"inference": 1.0, "training": 3.0}
COMPARED = ["model.name=gpt2", "workload.seq=512", "task=training", "workload.steps=1"]
REPEATS = 5


def measure() -> dict[str, Any]:
    """All figures of this module, by name."""
    traces = {name: _in_a_process("trace", overrides) for name, overrides in TRACES.items()}
    pairs = [(_in_a_process("whole", COMPARED), _in_a_process("torch", COMPARED)) for _ in range(3)]
    return {
        "traces": traces,
        "goals_s": GOALS_S,
        "mem_tracker": {
            "step": COMPARED,
            "memgpt_at_full_depth": [ours for ours, _ in pairs],
            "torch": [theirs for _, theirs in pairs],
            "ratio": statistics.median(t["wall_s"] / o["wall_s"] for o, t in pairs),
        },
    }


def _in_a_process(what: str, overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed.tracing", what, *overrides]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _timed(run: Callable[[], int], repeats: int) -> dict[str, Any]:
    """Medians of wall and processor seconds, and the peak that the run found."""
    wall, processor, peak = [], [], 0
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        peak = run()
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return {
        "wall_s": statistics.median(wall),
        "processor_s": statistics.median(processor),
        "peak_bytes": peak,
    }


def _child(what: str, overrides: list[str]) -> dict[str, Any]:
    import torch

    from mem_gpt_cli.model import resolve
    from mem_gpt_cli.recipe import load_recipe
    from mem_gpt_cli.trace import trace
    from mem_gpt_cli.workload.build import build_on_meta

    torch.set_num_threads(1)
    recipe = load_recipe(None, overrides=overrides)
    build_on_meta(resolve(recipe.model), recipe)  # transformers imports a model's code when it is first built
    if what == "torch":
        return _timed(lambda: _mem_tracker(recipe), 1)
    return _timed(
        lambda: trace(recipe, full_depth=what == "whole").allocated_bytes, REPEATS if what == "trace" else 1
    )


def _mem_tracker(recipe: Any) -> int:
    """The peak of the same step by torch's tracker: real transformers model, fake tensors, AdamW."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    from mem_gpt_cli.model import resolve
    from mem_gpt_cli.model.build import materialise
    from mem_gpt_cli.trace.faithful import like_the_real_run
    from mem_gpt_cli.workload import Unobserved, workload_of
    from mem_gpt_cli.workload.build import build_on_meta

    model = build_on_meta(resolve(recipe.model), recipe)
    workload = workload_of(recipe)
    with FakeTensorMode(allow_non_fake_inputs=True), like_the_real_run():
        materialise(model, torch.device("cpu"))
        workload.prepare(model, Unobserved())
        tokens = torch.zeros(recipe.workload.batch, recipe.lengths.prompt, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(model, workload._optimizer)
        with tracker:
            workload.run(model, tokens, Unobserved())
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_child(sys.argv[1], sys.argv[2:])))
    else:
        print(json.dumps(measure(), indent=2))
