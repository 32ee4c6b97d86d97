"""Rows of a CSV that survive a killed writer, several writers and a change of columns.

One header row, one row a cell, units in the names of the columns, an empty cell for what is not available.
Columns are only ever added at the end: a reader that knows the first ones goes on working.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.report.durable import locked, whole_length, write
from mem_gpt_cli.report.model import COMPONENTS, PHASES, SCHEMA_VERSION, MemoryReport

_PHASE_NAMES = tuple(dict.fromkeys(name for names in PHASES.values() for name in names))
_HELD = ("reserved", "process", "device")
QUALITY_COLUMNS = ("perplexity", "perplexity_change", "kl_divergence", "top1_agreement")
_TELEMETRY = ("power_mean_w", "power_max_w", "utilization_mean_percent", "temperature_max_c")

REPORT_COLUMNS: tuple[str, ...] = (
    "schema_version",
    "lens",
    "status",
    "model",
    "architecture",
    "parameters",
    "task",
    "dtype",
    "autocast",
    "quantization",
    "attention",
    "kv_cache",
    "checkpointing",
    "adapters",
    "optimizer",
    "loss",
    "batch",
    "seq",
    "prompt_tokens",
    "new_tokens",
    "device",
    "peak_phase",
    "peak_operation",
    "peak_allocated_bytes",
    "reserved_bytes",
    "process_bytes",
    "device_bytes",
    *(f"peak_{name}_bytes" for name in COMPONENTS),
    *(f"{name}_allocated_bytes" for name in _PHASE_NAMES),
    *(f"{name}_s" for name in _PHASE_NAMES),
    "tokens_per_s",
    "ttft_ms",
    "decode_ms_per_token",
    "step_s",
    "device_name",
    *(f"{name}_{held}_bytes" for held in _HELD for name in _PHASE_NAMES),
    *_TELEMETRY,
    *QUALITY_COLUMNS,
)
"""Columns of a report's row, in their order; new ones go to the end."""


def report_row(report: MemoryReport) -> dict[str, Any]:
    """The values of ``REPORT_COLUMNS`` for one report."""
    peak, recipe = report.peak, report.recipe
    phases = {name: report.phase(name) for name in _PHASE_NAMES}
    speed = report.speed
    row: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "lens": report.lens,
        "status": "ok",
        "model": report.model.name,
        "architecture": report.model.architecture,
        "parameters": report.model.parameters,
        "task": report.task,
        "peak_phase": peak.name,
        "peak_operation": peak.peak_operation,
        "peak_allocated_bytes": peak.peak_allocated_bytes,
        "reserved_bytes": report.reserved_bytes,
        "process_bytes": report.process_bytes,
        "device_bytes": report.device_bytes,
        "tokens_per_s": speed.tokens_per_s if speed else None,
        "ttft_ms": speed.ttft_ms if speed else None,
        "decode_ms_per_token": speed.decode_ms_per_token if speed else None,
        "step_s": speed.step_s if speed else None,
        "device_name": report.device.name,
    }
    row.update({column: _at(recipe, key) for column, key in _RECIPE_COLUMNS.items()})
    row.update({f"peak_{name}_bytes": report.held(peak, name) for name in COMPONENTS})
    for name, phase in phases.items():
        row[f"{name}_allocated_bytes"] = phase.peak_allocated_bytes if phase else None
        row[f"{name}_s"] = phase.duration_s if phase else None
        row.update({f"{name}_{held}_bytes": getattr(phase, f"{held}_bytes", None) for held in _HELD})
    row.update({name: getattr(report.telemetry, name, None) for name in _TELEMETRY})
    row.update({name: getattr(report.quality, name, None) for name in QUALITY_COLUMNS})
    return row


_RECIPE_COLUMNS = {
    "dtype": "model.dtype",
    "autocast": "workload.autocast",
    "quantization": "quantization.scheme",
    "attention": "attention.backend",
    "kv_cache": "kv_cache.kind",
    "checkpointing": "checkpointing.policy",
    "adapters": "adapters.kind",
    "optimizer": "optimizer.name",
    "loss": "loss.kind",
    "batch": "workload.batch",
    "seq": "workload.seq",
    "prompt_tokens": "workload.prompt_tokens",
    "new_tokens": "workload.new_tokens",
    "device": "device.name",
}


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Append one row and see it onto the disk; the file and its header are made where they are missing.

    The row becomes one whole line, written under a lock, so that several processes may append to one file.
    A last line without its end, which a killed writer left, is taken away first.

    Raises:
        UsageError: if the file's header is another one, or the file cannot be written.
        ValueError: if ``row`` holds a name that is not a column.
    """
    unknown = set(row) - set(columns)
    if unknown:
        raise ValueError(f"not columns of {path}: {sorted(unknown)}")
    line = _line([_cell(row.get(column)) for column in columns])
    try:
        with locked(path) as file:
            header = _line(columns)
            write(file, line if _mended_length(file, path, header) else header + line)
    except OSError as error:
        raise UsageError(f"cannot append to {path}: {error.strerror}") from error


def refuse_other_columns(path: Path, columns: Sequence[str]) -> None:
    """Pass a file that rows can be appended to, or none: before there are any.

    Raises:
        UsageError: if the file's header is another one, or the file cannot be read.
    """
    header = _line(columns)
    try:
        with path.open("rb") as file:
            found = file.read(len(header))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot append to {path}: {error.strerror}") from error
    if not header.startswith(found):  # a part of it is one that a killed writer left, and is mended
        raise _other_columns(path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a file; a last line without its end is left out.

    Raises:
        UsageError: if the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    whole = data[: data.rfind(b"\n") + 1].decode()
    return list(csv.DictReader(io.StringIO(whole, newline="")))


def _mended_length(file: int, path: Path, header: bytes) -> int:
    """Length of the file in bytes after a torn last line has been taken away; 0 for one to begin."""
    size = os.fstat(file).st_size
    found = os.pread(file, len(header), 0)
    torn_header = b"\n" not in found and header.startswith(found)
    if torn_header:
        whole = 0
    elif found == header:
        whole = whole_length(file, size)
    else:
        raise _other_columns(path)
    if whole < size:
        os.ftruncate(file, whole)
    return whole


def _other_columns(path: Path) -> UsageError:
    return UsageError(
        f"{path} has other columns than this command writes: give another --csv path, or move the file away"
    )


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """The text of a value; never a line break, because a line is what a torn write is told by."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return " ".join(str(value).splitlines())


def _at(recipe: Mapping[str, Any], key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
