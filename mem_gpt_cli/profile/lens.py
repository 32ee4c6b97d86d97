"""``profile(recipe)``: the report of real runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mem_gpt_cli.adapters.apply import base_parameters
from mem_gpt_cli.attention.backend import attention_note, implementation, kernels_that_ran
from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.ledger import Moment
from mem_gpt_cli.ledger.timeline import run_title, timeline_of
from mem_gpt_cli.model.facts import logits_width, summarise, vocabulary
from mem_gpt_cli.profile.account import Account
from mem_gpt_cli.profile.device import CudaDevice, find_device
from mem_gpt_cli.profile.history import check_history, recorded_history
from mem_gpt_cli.profile.memory import recorded_run
from mem_gpt_cli.profile.positions import refuse_beyond_positions
from mem_gpt_cli.profile.progress import Progress, Ticker
from mem_gpt_cli.profile.run import Job
from mem_gpt_cli.profile.speed import CleanRun, clean_run
from mem_gpt_cli.quality import measure as quality
from mem_gpt_cli.quantization.cost import kept_note
from mem_gpt_cli.quantization.saved import as_saved
from mem_gpt_cli.recipe import as_run, refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import PHASES, MemoryReport, Phase
from mem_gpt_cli.report.cause import cause_of
from mem_gpt_cli.report.model import Provenance
from mem_gpt_cli.report.timeline import check, write
from mem_gpt_cli.workload.build import build_on_meta
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
    history: Path | None = None,
) -> MemoryReport:
    """Measure; see ``mem_gpt_cli.profile.profile``."""
    if timeline is not None:
        check(timeline)
    if history is not None:
        check_history(history, recipe)
    job = prepare(recipe)
    why_not = quality.why_not(recipe) if recipe.quality else None
    ticker = Ticker(progress, job.steps * _runs(job, passes))
    measured = passes_over(job, ticker, passes, history)
    if timeline is not None:
        account = measured.account
        seconds = (account.time_ns - account.time_ns[0]) / 1e9
        write(
            timeline_of(
                account, run_title(job.source.name, recipe, f"measured on {job.device.summary.type}"), seconds
            ),
            timeline,
        )
    found = report(job, measured)
    if recipe.quality is None:
        return found
    if why_not is not None:
        return replace(found, warnings=(*found.warnings, why_not))
    return _with_quality(found, job, ticker)


def prepare(recipe: Recipe) -> Job:
    """Everything that can be refused before the run; raises as ``mem_gpt_cli.profile.profile``."""
    refuse_unavailable(recipe, "profile")
    device = find_device(recipe.device)
    source = source_of(recipe)
    recipe = as_saved(recipe, source)
    meta = build_on_meta(source, recipe)
    refuse_beyond_positions(source, recipe, meta)
    return Job(
        recipe,
        source,
        device,
        vocabulary(meta),
        logits_width(meta),
        summarise(source, meta, base_parameters(meta)),
        notes=(*source.notes, *attention_note(meta, recipe), *kept_note(source, recipe)),
    )


def passes_over(job: Job, ticker: Ticker, passes: Passes, history: Path | None = None) -> Measured:
    """Run the workload bare and recorded; see ``docs/profile.md`` for the order."""
    with intra_op_threads(job.recipe.device.threads):
        if isinstance(job.device, CudaDevice):
            return _recorded_first(job, ticker, history)
        clean = clean_run(job, ticker) if passes == "both" else None
        gc.collect()
        return Measured(clean, recorded_run(job, ticker), torch.get_num_threads())


def _recorded_first(job: Job, ticker: Ticker, history: Path | None) -> Measured:
    """On a GPU the bare run is where the peaks are from, so it comes last and is always run.

    The recorded one warms the process up; then the allocator is brought back to where a fresh process has it,
    which a warm-up inside the bare run would spoil.
    """
    account = recorded_run(job, ticker)
    gc.collect()
    job.device.release()
    with recorded_history(history):
        clean = clean_run(job, ticker, warm_up=False)
    return Measured(clean, account, torch.get_num_threads())


def _runs(job: Job, passes: Passes) -> int:
    return 2 if passes == "both" or isinstance(job.device, CudaDevice) else 1


def report(job: Job, measured: Measured) -> MemoryReport:
    """The report of the passes; what the clean pass would have measured is ``None`` without it."""
    clean, account = measured.clean or CleanRun(()), measured.account
    peaks = account.peaks()
    phases = tuple(_phase(name, peaks[name], clean) for name in PHASES[job.recipe.task] if name in peaks)
    whole, observed = clean.levels(), clean.observed
    return MemoryReport(
        lens="profile",
        task=job.recipe.task,
        recipe=as_run(job.recipe),
        model=job.model,
        device=job.device.summary,
        phases=phases,
        provenance=_provenance(clean),
        cause=cause_of(max(phases, key=lambda phase: phase.peak_allocated_bytes)),
        reserved_bytes=whole.reserved_bytes,
        process_bytes=whole.process_bytes,
        device_bytes=whole.device_bytes,
        speed=clean.speed(job) if clean.laps else None,
        telemetry=observed.telemetry,
        sources=observed.sources,
        warnings=(*job.notes, *observed.warnings, *_unlike(phases, clean), *_warnings(account)),
        details={
            "allocator_events": len(account.time_ns),
            "inner_buffers": [buffer._asdict() for buffer in account.inner[:LISTED_BUFFERS]],
            "attention_kernels": kernels_that_ran(
                (operation.name for operation in account.log.operations),
                implementation(job.recipe, job.device.torch_device),
            ),
            "threads": measured.threads,
            **observed.details,
            **job.details,
            **_requested(clean, phases),
        },
    )


def _with_quality(found: MemoryReport, job: Job, ticker: Ticker) -> MemoryReport:
    """The report with what the options cost in quality: a pass of its own, after those of memory."""
    gc.collect()
    return replace(
        found,
        quality=quality.measure(job.recipe, job.device.torch_device, ticker.show),
        warnings=(*found.warnings, *quality.notes(job.recipe)),
        provenance={**found.provenance, "quality": "measured"},
    )


def _phase(name: str, peak: Moment, clean: CleanRun) -> Phase:
    levels = clean.levels(name)
    allocated, held = _allocated(peak, levels.allocated_bytes)
    return Phase(
        name=name,
        peak_allocated_bytes=allocated,
        components=held,
        peak_operation=peak.operation.name,
        peak_module=peak.operation.module or None,
        duration_s=clean.duration_s(name),
        reserved_bytes=levels.reserved_bytes,
        process_bytes=levels.process_bytes,
        device_bytes=levels.device_bytes,
    )


def _allocated(peak: Moment, counted: int | None) -> tuple[int, Mapping[str, int]]:
    """A phase's peak and its components, by the recorded pass and the allocator's count in the bare one.

    The GPU's allocator counts what no tensor shows: kernels' buffers, and blocks that were not cut. Where it
    counts less than the tensors of the recorded pass, the passes were not alike, and no component can be
    told of the bare one: the recorded peak stands, and ``_unlike`` says so.
    """
    recorded, held = peak.allocated_bytes, peak.components
    if counted is None or held["workspace"] + counted < recorded:
        return recorded, held
    return counted, {**held, "workspace": held["workspace"] + counted - recorded}


def _unlike(phases: Sequence[Phase], clean: CleanRun) -> Iterator[str]:
    """A warning for each phase whose peak is not the one that the allocator counted."""
    for phase in phases:
        counted = clean.levels(phase.name).allocated_bytes
        if counted is not None and counted != phase.peak_allocated_bytes:
            yield (
                f"{phase.name}: the two passes differ by {phase.peak_allocated_bytes - counted:,} B, so its "
                f"allocated bytes are those of the recorded pass: the allocator counted {counted:,} B in the "
                "bare one, less than the tensors held"
            )


def _provenance(clean: CleanRun) -> dict[str, Provenance]:
    """Where each column is from; what this machine does not tell is ``unavailable``."""

    def told(value: Any) -> Provenance:
        return "unavailable" if value is None else "measured"

    whole, timed = clean.levels(), clean.laps or None
    return {
        "peak_allocated_bytes": "measured",
        "components": "measured",
        "duration_s": told(timed),
        "process_bytes": told(whole.process_bytes),
        "reserved_bytes": told(whole.reserved_bytes),
        "device_bytes": told(whole.device_bytes),
        "speed": told(timed),
    }


def _requested(clean: CleanRun, phases: Sequence[Phase]) -> dict[str, Any]:
    """What tensors asked a GPU's allocator for at its peaks, before it rounded up."""
    requested = {phase.name: clean.levels(phase.name).requested_bytes for phase in phases}
    return {} if None in requested.values() else {"requested_bytes": requested}


def _warnings(account: Account) -> tuple[str, ...]:
    if not account.foreign_bytes:
        return ()
    return (
        f"tensors of {account.foreign_bytes:,} B in memory that torch's allocator did not hand out "
        "(memory-mapped files, other libraries) are not counted",
    )
