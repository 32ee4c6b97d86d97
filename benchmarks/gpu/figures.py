"""The figures of a report that are compared: bytes allocated and reserved, in all and by phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mem_gpt_cli.bench.columns import PHASE_NAMES
from mem_gpt_cli.report.model import COMPONENTS, MemoryReport

KINDS = ("allocated", "reserved")
PLACES = ("peak", *PHASE_NAMES)
COMPARED = tuple(f"{place}_{kind}" for place in PLACES for kind in KINDS)
FIGURES = (
    *(f"{name}_bytes" for name in COMPARED),
    *(f"peak_{name}_bytes" for name in COMPONENTS),
    "peak_process_bytes",
    "peak_phase",
)


def figures_of(report: MemoryReport | None) -> dict[str, Any]:
    """``FIGURES`` of a report; what it does not know, or all without a report, is ``None``."""
    found: dict[str, Any] = dict.fromkeys(FIGURES)
    if report is None:
        return found
    for phase in report.phases:
        found[f"{phase.name}_allocated_bytes"] = phase.peak_allocated_bytes
        found[f"{phase.name}_reserved_bytes"] = phase.reserved_bytes
    return found | {
        "peak_allocated_bytes": report.allocated_bytes,
        "peak_reserved_bytes": report.reserved_bytes,
        "peak_process_bytes": report.process_bytes,
        "peak_phase": report.peak.name,
        **{f"peak_{name}_bytes": report.held(report.peak, name) for name in COMPONENTS},
    }


DIFFERENCES = tuple(f"{name}_difference_{unit}" for name in COMPARED for unit in ("bytes", "percent"))


def differences(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """``DIFFERENCES``: predicted minus measured, also in percent of what was measured."""
    return dict(_differences(predicted, measured))


def _differences(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in COMPARED:
        was, is_ = predicted[f"{name}_bytes"], measured[f"{name}_bytes"]
        known = was is not None and is_ is not None
        yield f"{name}_difference_bytes", was - is_ if known else None
        yield f"{name}_difference_percent", 100 * (was - is_) / is_ if known and is_ else None


def prefixed(prefix: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The same figures as columns of one lens."""
    return {f"{prefix}_{name}": value for name, value in figures.items()}
