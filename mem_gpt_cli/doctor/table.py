"""A diagnosis for a terminal: it fits 80 columns, and commands stay on one line."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mem_gpt_cli._version import __version__
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.table import plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mem_gpt_cli.devices.calibration import Calibration
    from mem_gpt_cli.doctor.diagnosis import Diagnosis

_COLORS = {"ok": "green", "missing": "yellow", "unavailable": "dim"}
_BAD = "red"


def diagnosis_tables(found: Diagnosis) -> Iterator[RenderableType]:
    """Packages, tries, GPUs, the allocator's settings, commands."""
    yield Text(
        f"memgpt {__version__}, Python {found.python.version}, {platform.system()} {platform.machine()}",
        "bold",
    )
    yield _packages(found)
    yield _tries(found)
    yield _gpus(found) if found.gpus else Text("GPUs: none that NVML tells of")
    yield _allocator(found)
    if found.installs:
        yield Text("To install what is missing:", "bold")


def commands(found: Diagnosis) -> Iterator[str]:
    """One line each, to be printed unwrapped."""
    for command, names in found.installs.items():
        untold = [name for name in names if name not in command]
        yield f"  {command}" + (f"  # {', '.join(untold)}" if untold else "")


def calibration_table(found: Calibration) -> Table:
    """What was measured, and what each figure is."""
    table = plain_table()
    table.add_column(Text(found.product, "bold"), no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    rows: list[tuple[str, int | None, str]] = [
        ("context", found.context_bytes, "CUDA and one tensor, less what torch reserved"),
        ("libraries", found.library_bytes, "what a training step of GPT-2 adds, outside the allocator"),
        *((f"  {name}", size, "its first use alone") for name, size in found.libraries.items()),
        ("workspaces, forward", found.forward_workspace_bytes, "of cuBLAS, inside the allocator"),
        ("workspaces, backward", found.backward_workspace_bytes, "those of autograd's thread"),
        ("device, idle", found.device_baseline_bytes, "in use while no process is"),
    ]
    for name, size, what in rows:
        table.add_row(name, render_bytes(size) or "unknown", what)
    return table


def _packages(found: Diagnosis) -> Table:
    table = plain_table()
    table.add_column("installed", no_wrap=True)
    table.add_column("version", overflow="fold")
    table.add_column("for", overflow="fold")
    for each in found.packages:
        if each.fits:
            shown = Text(each.version or "")
        elif each.version:
            shown = Text(f"{each.version}, needs {each.wanted}", _BAD)
        else:
            shown = Text("missing", _BAD if each.required else "yellow")
        table.add_row(each.name, shown, each.purpose)
    return table


def _tries(found: Diagnosis) -> Table:
    table = plain_table()
    table.add_column("tried", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    for each in found.outcomes:
        table.add_row(each.name, Text(each.status, _COLORS.get(each.status, _BAD)), each.detail)
    return table


def _gpus(found: Diagnosis) -> RenderableType:
    table = plain_table()
    table.add_column("GPU", overflow="fold")
    for heading in ("sm", "total", "free"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("MIG", "known as", "calibrated"):
        table.add_column(heading, no_wrap=True)
    for gpu in found.gpus:
        if "product" in gpu:
            table.add_row(*_gpu(gpu))
    problems = [Text(f"GPU {gpu['index']}: {gpu['problem']}", _BAD) for gpu in found.gpus if gpu["problem"]]
    return Group(table, *problems)


def _gpu(gpu: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{gpu['index']}  {gpu['product'].removeprefix('NVIDIA ')}",
        gpu["capability"] or "",
        render_bytes(gpu["total_bytes"]),
        render_bytes(gpu["free_bytes"]),
        gpu["mig"],
        gpu["known_as"] or "",
        "yes" if gpu["calibrated"] else "no",
    )


def _allocator(found: Diagnosis) -> Text:
    if not found.allocator:
        return Text("Allocator settings: torch's own (PYTORCH_CUDA_ALLOC_CONF is not set)")
    text = Text("\n".join(f"{name}={value}" for name, value in found.allocator.items()))
    if found.allocator_problem:
        text.append(f"\n{found.allocator_problem}", _BAD)
    return text
