"""What is claimed of an option beside what was measured, and why where it falls short."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mem_gpt_cli.recipe.schema import Claim
from mem_gpt_cli.report.model import COMPONENTS
from mem_gpt_cli.report.sizes import render_bytes

Verdict = Literal["beaten", "missed", "unmeasured"]

CLAIM_COLUMNS = (
    "claim",
    "claimed_memory_saved_percent",
    "memory_saved_percent",
    "memory_verdict",
    "claimed_speed_ratio",
    "speed_verdict",
    "claimed_quality_lost_percent",
    "quality_lost_percent",
    "quality_verdict",
    "miss_cause",
)
_LISTED = 3
"""Components that a missed saving names."""


class Aspect(NamedTuple):
    """One thing that is claimed: its columns, and whether more is better."""

    name: str
    claimed: str
    measured: str
    more_is_better: bool
    cause: Callable[[Mapping[str, Any], Mapping[str, Any]], str]


def judged(row: Mapping[str, Any], baseline: Mapping[str, Any], claim: Claim) -> dict[str, Any]:
    """The columns that hold a claim against a cell's row; what was not measured is ``unmeasured``."""
    found: dict[str, Any] = {
        "claim": claim.name,
        "claimed_memory_saved_percent": claim.memory_saved_percent,
        "claimed_speed_ratio": claim.speed_ratio,
        "claimed_quality_lost_percent": claim.quality_lost_percent,
        "memory_saved_percent": _saved(row),
        "quality_lost_percent": _quality_lost(row, baseline),
    }
    told = {**row, **found}
    causes = []
    for aspect in ASPECTS:
        verdict = _verdict(aspect, told)
        found[f"{aspect.name}_verdict"] = verdict
        if verdict == "missed":
            causes.append(f"{aspect.name}: {aspect.cause(told, baseline)}")
    return found | {"miss_cause": "; ".join(causes) or None}


def _verdict(aspect: Aspect, told: Mapping[str, Any]) -> Verdict | None:
    claimed, measured = told[aspect.claimed], told[aspect.measured]
    if claimed is None:
        return None
    if measured is None:
        return "unmeasured"
    measured = round(measured, 2)  # the last places of a perplexity hang on the order of additions
    met = measured >= claimed if aspect.more_is_better else measured <= claimed
    return "beaten" if met else "missed"


def _saved(row: Mapping[str, Any]) -> float | None:
    ratio = row["memory_ratio"]
    return None if ratio is None or row["measured_peak_bytes"] is None else 100 * (1 - ratio)


def _quality_lost(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> float | None:
    """By how many percent the perplexity is above the baseline's; below 0 where it is better."""
    mine, its = row.get("perplexity"), baseline.get("perplexity")
    return None if mine is None or not its else 100 * (mine / its - 1)


def _held_by(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """What holds the peak: its largest components, each beside the baseline's."""
    held = {name: row[f"measured_peak_{name}_bytes"] or 0 for name in COMPONENTS}
    parts = []
    for name in sorted(held, key=lambda name: -held[name])[:_LISTED]:
        before = baseline[f"measured_peak_{name}_bytes"] or 0
        if held[name]:
            words = name.replace("_", " ")
            parts.append(f"{words} {render_bytes(held[name])} (baseline {render_bytes(before)})")
    phase = row["measured_peak_phase"]
    return f"the peak, in {phase} at {row['measured_peak_operation']}, is {', '.join(parts)}"


def _slow_in(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """Which phase takes how much of the baseline's time."""
    parts = [
        f"{phase} takes {row[f'{phase}_s']:.2f} s (baseline {baseline[f'{phase}_s']:.2f} s)"
        for phase in ("prefill", "decode", "forward", "backward", "optimizer_step")
        if row[f"{phase}_s"] and baseline[f"{phase}_s"]
    ]
    return ", ".join(parts)


def _lost(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    return f"perplexity is {row['perplexity']:.2f} (baseline {baseline['perplexity']:.2f})"


ASPECTS: Sequence[Aspect] = (
    Aspect("memory", "claimed_memory_saved_percent", "memory_saved_percent", True, _held_by),
    Aspect("speed", "claimed_speed_ratio", "speed_ratio", True, _slow_in),
    Aspect("quality", "claimed_quality_lost_percent", "quality_lost_percent", False, _lost),
)
