"""One cell, one row: what the CSV of a sweep holds, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mem_gpt_cli._version import __version__
from mem_gpt_cli.bench.claims import CLAIM_COLUMNS
from mem_gpt_cli.bench.outcome import Outcome
from mem_gpt_cli.recipe import Cell, resolved
from mem_gpt_cli.report.csv import QUALITY_COLUMNS
from mem_gpt_cli.report.model import COMPONENTS, PHASES, SCHEMA_VERSION, Lens, MemoryReport, Speed, Telemetry

Row = dict[str, Any]

PHASE_NAMES = tuple(dict.fromkeys(name for names in PHASES.values() for name in names))
PREFIXES: Mapping[Lens, str] = {"estimate": "formula", "trace": "trace", "profile": "measured"}
"""How each lens is called in the columns."""

RECIPE_KEYS: Mapping[str, str] = {
    "dtype": "model.dtype",
    "dropout": "model.dropout",
    "experts": "model.experts",
    "autocast": "workload.autocast",
    "quantization": "quantization.scheme",
    "attention": "attention.backend",
    "kv_cache": "kv_cache.kind",
    "checkpointing": "checkpointing.policy",
    "adapters": "adapters.kind",
    "optimizer": "optimizer.name",
    "optimizer_implementation": "optimizer.implementation",
    "loss": "loss.kind",
    "batch": "workload.batch",
    "seq": "workload.seq",
    "prompt_tokens": "workload.prompt_tokens",
    "new_tokens": "workload.new_tokens",
    "steps": "workload.steps",
    "logits": "workload.logits",
    "hold_outputs": "workload.hold_outputs",
    "seed": "workload.seed",
    "device": "device.name",
    "budget_bytes": "budget.memory",
}
"""Columns that hold a key of the cell's recipe; what the sweep set, of any key, is in ``values`` as JSON."""

COLUMNS: tuple[str, ...] = (
    "schema_version",
    "memgpt_version",
    "torch_version",
    "transformers_version",
    "started",
    "recipe",
    "cell",
    "key",
    "digest",
    "values",
    "lenses",
    "status",
    "model",
    "architecture",
    "parameters",
    "task",
    *RECIPE_KEYS,
    "device_name",
    "threads",
    *(f"{prefix}_peak_bytes" for prefix in PREFIXES.values()),
    "trace_lower_bytes",
    "trace_upper_bytes",
    "formula_residual_bytes",
    "formula_residual_percent",
    "trace_residual_bytes",
    "trace_residual_percent",
    "measured_peak_phase",
    "measured_peak_operation",
    *(f"measured_peak_{name}_bytes" for name in COMPONENTS),
    *(f"{prefix}_{name}_bytes" for name in PHASE_NAMES for prefix in PREFIXES.values()),
    "reserved_bytes",
    "process_bytes",
    "device_bytes",
    "tokens_per_s",
    "ttft_ms",
    "decode_ms_per_token",
    "step_s",
    *(f"{name}_s" for name in PHASE_NAMES),
    "estimate_s",
    "trace_s",
    "profile_s",
    "cell_s",
    "baseline_cell",
    "memory_ratio",
    "speed_ratio",
    "failed_phase",
    "error",
    "allocator",
    "trace_reserved_bytes",
    "reserved_residual_bytes",
    "reserved_residual_percent",
    "start_reserved_bytes",
    "power_w",
    "utilization_percent",
    "temperature_c",
    *CLAIM_COLUMNS,
    *QUALITY_COLUMNS,
)
"""Columns of a sweep's CSV, in their order; new ones go to the end."""


def row_of(sweep: str, started: str, cell: Cell, lenses: tuple[Lens, ...], outcome: Outcome) -> Row:
    """The row of a cell, but for what compares it with its baseline: see ``compared``."""
    recipe = resolved(cell.recipe)
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "schema_version": SCHEMA_VERSION,
        "memgpt_version": __version__,
        "torch_version": _version("torch"),
        "transformers_version": _version("transformers"),
        "started": started,
        "recipe": sweep,
        "cell": cell.index,
        "key": cell.key,
        "digest": cell.digest,
        "values": cell.values,
        "lenses": list(lenses),
        "status": outcome.status,
        "model": cell.recipe.model.name,
        "task": cell.recipe.task,
        "cell_s": outcome.cell_s,
        "baseline_cell": cell.baseline,
        "failed_phase": outcome.failed_phase,
        "allocator": cell.recipe.device.allocator,
        "start_reserved_bytes": outcome.start_reserved_bytes,
        "error": outcome.error,
    }
    row |= {column: _at(recipe, key) for column, key in RECIPE_KEYS.items()} | _lengths(cell)
    for lens, report in outcome.reports.items():
        row |= _peaks(PREFIXES[lens], report) | {f"{lens}_s": outcome.seconds.get(lens)}
    row |= _traced(outcome.reports.get("trace")) | _measured(outcome.reports.get("profile"))
    for prefix in ("formula", "trace"):
        row |= _residual(prefix, row[f"{prefix}_peak_bytes"], row["measured_peak_bytes"])
    return row | _residual("reserved", row["trace_reserved_bytes"], row["reserved_bytes"])


def compared(row: Row, baseline: Row) -> Row:
    """The columns that compare a row with the one of its baseline: its figure divided by the baseline's.

    Memory is that of the best lens that both rows have: measured, else traced, else computed.
    """
    peaks = [f"{prefix}_peak_bytes" for prefix in ("measured", "trace", "formula")]
    shared = next((name for name in peaks if row[name] is not None and baseline[name]), None)
    return {
        "memory_ratio": row[shared] / baseline[shared] if shared else None,
        "speed_ratio": _ratio(row["tokens_per_s"], baseline["tokens_per_s"]),
    }


def _peaks(prefix: str, report: MemoryReport) -> Row:
    phases = {f"{prefix}_{phase.name}_bytes": phase.peak_allocated_bytes for phase in report.phases}
    model = {"architecture": report.model.architecture, "parameters": report.model.parameters}
    return {f"{prefix}_peak_bytes": report.allocated_bytes} | phases | model


def _traced(trace: MemoryReport | None) -> Row:
    """What the GPU's allocator reserves, and between what the data moves the traced peak."""
    if trace is None:
        return {}
    lower = [phase.lower_bytes for phase in trace.phases if phase.lower_bytes is not None]
    upper = [phase.upper_bytes for phase in trace.phases if phase.upper_bytes is not None]
    return {
        "trace_reserved_bytes": trace.reserved_bytes,
        "trace_lower_bytes": max(lower, default=None),
        "trace_upper_bytes": max(upper, default=None),
    }


def _measured(report: MemoryReport | None) -> Row:
    if report is None:
        return {}
    peak, speed, board = report.peak, report.speed or Speed(), report.telemetry or Telemetry()
    return {
        "device_name": report.device.name,
        "threads": report.details.get("threads"),
        "measured_peak_phase": peak.name,
        "measured_peak_operation": peak.peak_operation,
        "reserved_bytes": report.reserved_bytes,
        "process_bytes": report.process_bytes,
        "device_bytes": report.device_bytes,
        "tokens_per_s": speed.tokens_per_s,
        "ttft_ms": speed.ttft_ms,
        "decode_ms_per_token": speed.decode_ms_per_token,
        "step_s": speed.step_s,
        "power_w": board.power_mean_w,
        "utilization_percent": board.utilization_mean_percent,
        "temperature_c": board.temperature_max_c,
        **{name: getattr(report.quality, name, None) for name in QUALITY_COLUMNS},
        **{f"measured_peak_{name}_bytes": report.held(peak, name) for name in COMPONENTS},
        **{f"{phase.name}_s": phase.duration_s for phase in report.phases},
    }


def _residual(prefix: str, predicted: int | None, measured: int | None) -> Row:
    """Predicted minus measured, also in percent of what was measured."""
    if predicted is None or measured is None:
        return {}
    off = predicted - measured
    return {
        f"{prefix}_residual_bytes": off,
        f"{prefix}_residual_percent": 100 * off / measured if measured else None,
    }


def _lengths(cell: Cell) -> Row:
    """The lengths that are run, those included that the recipe leaves open; training has one alone."""
    lengths, training = cell.recipe.lengths, cell.recipe.task == "training"
    return {
        "seq": lengths.seq,
        "prompt_tokens": None if training else lengths.prompt,
        "new_tokens": None if training else lengths.new,
    }


def _ratio(value: float | None, baseline: float | None) -> float | None:
    return value / baseline if value is not None and baseline else None


def _at(recipe: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return recipe[section][name]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
