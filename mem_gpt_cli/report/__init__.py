"""The one result type and its renderings: table, JSON, CSV, plot, page."""

from mem_gpt_cli.report.model import (
    COMPONENTS,
    PHASES,
    SCHEMA_VERSION,
    DeviceSummary,
    MemoryReport,
    ModelSummary,
    Phase,
    Quality,
    Source,
    Speed,
    Telemetry,
    components,
)

__all__ = [
    "COMPONENTS",
    "PHASES",
    "SCHEMA_VERSION",
    "DeviceSummary",
    "MemoryReport",
    "ModelSummary",
    "Phase",
    "Quality",
    "Source",
    "Speed",
    "Telemetry",
    "components",
]
