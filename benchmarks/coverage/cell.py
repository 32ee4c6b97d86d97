"""One model type: does it construct, does it run for real, does it trace, and do both agree?"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.coverage.small import small_config
from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import MemoryReport

WORKLOADS: dict[str, dict[str, Any]] = {
    "inference": {"batch": 2, "prompt_tokens": 24, "new_tokens": 4},
    "training": {"batch": 2, "seq": 24, "steps": 2},
}


@dataclass
class Outcome:
    """One task of one model type; bytes are ``None`` where there was no such peak.

    ``traced_bytes`` is one number, or two where the data decides: the bounds. ``reason`` says why there is no
    measurement or no trace.
    """

    measured_bytes: int | None = None
    traced_bytes: tuple[int, ...] | None = None
    reason: str = ""
    phases: dict[str, list[int]] = field(default_factory=dict)

    @property
    def residual_bytes(self) -> int | None:
        """Traced less measured; 0 between bounds."""
        if self.measured_bytes is None or self.traced_bytes is None:
            return None
        nearest = min(max(self.measured_bytes, self.traced_bytes[0]), self.traced_bytes[-1])
        return nearest - self.measured_bytes


def examine(model_type: str) -> dict[str, Any]:
    """Everything that the table says of a model type, as plain values."""
    row: dict[str, Any] = {"model_type": model_type, "constructs": False}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        try:
            path.write_text(json.dumps(small_config(model_type)))
            row |= constructed(path)
        except Exception as error:  # whatever a model type may raise is the row's answer
            return row | {"reason": f"does not construct: {first_line(error)}"}
        for task, workload in WORKLOADS.items():
            recipe = Recipe.model_validate({"model": {"name": str(path)}, "task": task, "workload": workload})
            found = outcome(recipe)
            row[task] = asdict(found) | {"residual_bytes": found.residual_bytes}
    return row


def constructed(path: Path) -> dict[str, Any]:
    """The class that transformers makes of a config, and its size."""
    from mem_gpt_cli.model import resolve
    from mem_gpt_cli.workload.build import build_on_meta

    recipe = Recipe.model_validate({"model": {"name": str(path)}})
    model = build_on_meta(resolve(recipe.model), recipe)
    return {
        "constructs": True,
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def outcome(recipe: Recipe) -> Outcome:
    """Run for real, then trace."""
    from mem_gpt_cli.profile import profile
    from mem_gpt_cli.trace import trace

    found = Outcome()
    try:
        measured = profile(recipe, passes="memory")
    except Exception as error:  # whatever a model type may raise is the row's answer
        found.reason = f"does not run: {first_line(error)}"
        return found
    found.measured_bytes = measured.allocated_bytes
    try:
        traced = trace(recipe)
    except MemgptError as error:
        found.reason = str(error).removeprefix(f"{recipe.model.name} cannot be traced: ")
        return found
    found.traced_bytes = bounds(traced)
    for phase in measured.phases:
        predicted = next(other for other in traced.phases if other.name == phase.name)
        found.phases[phase.name] = [phase.peak_allocated_bytes, predicted.peak_allocated_bytes]
    return found


def bounds(traced: MemoryReport) -> tuple[int, ...]:
    """The peak of a trace, or the bounds of it."""
    lows = [
        phase.peak_allocated_bytes if phase.lower_bytes is None else phase.lower_bytes
        for phase in traced.phases
    ]
    highs = [
        phase.peak_allocated_bytes if phase.upper_bytes is None else phase.upper_bytes
        for phase in traced.phases
    ]
    return (max(lows),) if lows == highs else (max(lows), max(highs))


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text, with the second where the first announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
