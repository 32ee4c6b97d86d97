"""A report as one JSON object: the contract that others parse (documented in ``docs/report.md``)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.report.ladder import has_ladder, ladder
from mem_gpt_cli.report.model import (
    SCHEMA_VERSION,
    DeviceSummary,
    MemoryReport,
    ModelSummary,
    Phase,
    Quality,
    Source,
    Speed,
    Telemetry,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def to_dict(report: MemoryReport) -> dict[str, Any]:
    """The object that ``--json`` prints; bytes are ``int``, what is not available is ``None``."""
    peak = report.peak
    return {
        "schema_version": SCHEMA_VERSION,
        "lens": report.lens,
        "recipe": _plain(report.recipe),
        "model": dataclasses.asdict(report.model),
        "device": dataclasses.asdict(report.device),
        "task": report.task,
        "phases": [_phase(phase) for phase in report.phases],
        "peak": {
            "phase": peak.name,
            "allocated_bytes": peak.peak_allocated_bytes,
            "reserved_bytes": report.reserved_bytes,
            "process_bytes": report.process_bytes,
            "device_bytes": report.device_bytes,
            "components": dict(peak.components),
        },
        "provenance": dict(report.provenance),
        "warnings": list(report.warnings),
        "cause": report.cause,
        "speed": dataclasses.asdict(report.speed) if report.speed else None,
        "telemetry": dataclasses.asdict(report.telemetry) if report.telemetry else None,
        "quality": _quality(report.quality),
        "ladder": [dataclasses.asdict(step) for step in ladder(report)] if has_ladder(report) else None,
        "sources": {name: dataclasses.asdict(source) for name, source in report.sources.items()},
        "details": _plain(report.details),
    }


def from_dict(data: Mapping[str, Any]) -> MemoryReport:
    """The report that ``to_dict`` made the object of; keys that it does not know are left aside.

    Raises:
        UsageError: if it is not a report, or of another schema version.
    """
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"this is no report of schema version {SCHEMA_VERSION} (schema_version is {version!r}): "
            "write it again with this version of memgpt"
        )
    try:
        return MemoryReport(
            lens=data["lens"],
            task=data["task"],
            recipe=data["recipe"],
            model=_known(ModelSummary, data["model"]),
            device=_known(DeviceSummary, data["device"]),
            phases=tuple(_known(Phase, phase) for phase in data["phases"]),
            provenance=data["provenance"],
            cause=data.get("cause"),
            reserved_bytes=data["peak"]["reserved_bytes"],
            process_bytes=data["peak"]["process_bytes"],
            device_bytes=data["peak"]["device_bytes"],
            speed=_known(Speed, data["speed"]) if data.get("speed") else None,
            telemetry=_known(Telemetry, data["telemetry"]) if data.get("telemetry") else None,
            quality=_known(Quality, data["quality"]) if data.get("quality") else None,
            sources={name: _known(Source, source) for name, source in data.get("sources", {}).items()},
            warnings=tuple(data["warnings"]),
            details=data.get("details", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"this is no whole report: {type(error).__name__}: {error}") from error


def to_json(report: MemoryReport) -> str:
    """``to_dict`` as indented text, without a newline at its end."""
    return json.dumps(to_dict(report), indent=2, ensure_ascii=False)


def _quality(quality: Quality | None) -> dict[str, Any] | None:
    if quality is None:
        return None
    return {**dataclasses.asdict(quality), "perplexity_change": quality.perplexity_change}


def _phase(phase: Phase) -> dict[str, Any]:
    return dataclasses.asdict(dataclasses.replace(phase, components=dict(phase.components)))


def _plain(value: Any) -> Any:
    """Mappings and sequences as ``dict`` and ``list``, so that a round trip compares equal."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _known(kind: type[T], data: Mapping[str, Any]) -> T:
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in data.items() if key in names})
