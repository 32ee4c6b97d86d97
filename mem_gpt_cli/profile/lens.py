"""``profile(recipe)``: the report of real runs."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mem_gpt_cli.ledger import Moment
from mem_gpt_cli.ledger.timeline import run_title, timeline_of
from mem_gpt_cli.model import resolve
from mem_gpt_cli.model.build import attention_note, build_on_meta
from mem_gpt_cli.model.facts import logits_width, summarise, vocabulary
from mem_gpt_cli.profile.account import Account
from mem_gpt_cli.profile.device import find_device
from mem_gpt_cli.profile.memory import recorded_run
from mem_gpt_cli.profile.positions import refuse_beyond_positions
from mem_gpt_cli.profile.progress import Progress, Ticker
from mem_gpt_cli.profile.run import Job
from mem_gpt_cli.profile.speed import CleanRun, clean_run
from mem_gpt_cli.recipe import as_run, refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import PHASES, MemoryReport, Phase
from mem_gpt_cli.report.cause import cause_of
from mem_gpt_cli.report.model import Provenance
from mem_gpt_cli.report.timeline import check, write
from mem_gpt_cli.workload.threads import intra_op_threads

Passes = Literal["both", "memory"]
LISTED_BUFFERS = 10
"""Operators whose kernels' inner buffers the report lists."""


@dataclass(frozen=True)
class Measured:
    """What the passes over one job found."""

    clean: CleanRun | None
    account: Account
    threads: int


def profile(
    recipe: Recipe,
    *,
    passes: Passes = "both",
    progress: Progress | None = None,
    timeline: Path | None = None,
) -> MemoryReport:
    """Measure; see ``mem_gpt_cli.profile.profile``."""
    if timeline is not None:
        check(timeline)
    job = prepare(recipe)
    measured = passes_over(job, Ticker(progress, job.steps * (2 if passes == "both" else 1)), passes)
    if timeline is not None:
        account = measured.account
        seconds = (account.time_ns - account.time_ns[0]) / 1e9
        write(
            timeline_of(
                account, run_title(job.source.name, recipe, f"measured on {job.device.summary.type}"), seconds
            ),
            timeline,
        )
    return report(job, measured)


def prepare(recipe: Recipe) -> Job:
    """Everything that can be refused before the run; raises as ``mem_gpt_cli.profile.profile``."""
    refuse_unavailable(recipe, "profile")
    device = find_device(recipe.device)
    source = resolve(recipe.model)
    meta = build_on_meta(source, recipe)
    refuse_beyond_positions(source, recipe, meta)
    return Job(
        recipe,
        source,
        device,
        vocabulary(meta),
        logits_width(meta),
        summarise(source, meta),
        notes=(*source.notes, *attention_note(meta, recipe)),
    )


def passes_over(job: Job, ticker: Ticker, passes: Passes) -> Measured:
    """Run the workload bare, then recorded; on a GPU the bare run is where the peaks are from."""
    with intra_op_threads(job.recipe.device.threads):
        clean = clean_run(job, ticker) if passes == "both" or job.device.is_cuda else None
        gc.collect()
        job.device.release()
        return Measured(clean, recorded_run(job, ticker), torch.get_num_threads())


def report(job: Job, measured: Measured) -> MemoryReport:
    """The report of the passes; what the clean pass would have measured is ``None`` without it."""
    clean, account = measured.clean, measured.account
    peaks = account.peaks()
    phases = tuple(_phase(name, peaks[name], clean) for name in PHASES[job.recipe.task] if name in peaks)
    return MemoryReport(
        lens="profile",
        task=job.recipe.task,
        recipe=as_run(job.recipe),
        model=job.model,
        device=job.device.summary,
        phases=phases,
        provenance=_provenance(clean),
        cause=cause_of(max(phases, key=lambda phase: phase.peak_allocated_bytes)),
        reserved_bytes=clean.allocator().reserved_bytes if clean else None,
        process_bytes=clean.process_bytes() if clean else None,
        speed=clean.speed(job) if clean else None,
        warnings=(*job.notes, *_warnings(account)),
        details={
            "allocator_events": len(account.time_ns),
            "inner_buffers": [buffer._asdict() for buffer in account.inner[:LISTED_BUFFERS]],
            "threads": measured.threads,
        },
    )


def _phase(name: str, peak: Moment, clean: CleanRun | None) -> Phase:
    allocated = clean.allocator(name).allocated_bytes if clean else None
    held: Mapping[str, int] = peak.components
    if allocated is not None:
        # The GPU's allocator counts what no tensor shows: kernels' buffers and its own rounding.
        held = {**held, "workspace": held["workspace"] + allocated - peak.allocated_bytes}
    return Phase(
        name=name,
        peak_allocated_bytes=peak.allocated_bytes if allocated is None else allocated,
        components=held,
        peak_operation=peak.operation.name,
        peak_module=peak.operation.module or None,
        duration_s=clean.duration_s(name) if clean else None,
        process_bytes=clean.process_bytes(name) if clean else None,
    )


def _provenance(clean: CleanRun | None) -> dict[str, Provenance]:
    """Where each column is from; what this machine does not tell is ``unavailable``."""

    def told(value: Any) -> Provenance:
        return "unavailable" if value is None else "measured"

    return {
        "peak_allocated_bytes": "measured",
        "components": "measured",
        "duration_s": told(clean),
        "process_bytes": told(clean and clean.process_bytes()),
        "reserved_bytes": told(clean and clean.allocator().reserved_bytes),
        "device_bytes": "unavailable",
        "speed": told(clean),
    }


def _warnings(account: Account) -> tuple[str, ...]:
    if not account.foreign_bytes:
        return ()
    return (
        f"tensors of {account.foreign_bytes:,} B in memory that torch's allocator did not hand out "
        "(memory-mapped files, other libraries) are not counted",
    )
