"""``trace(recipe)``: the report of a dry run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mem_gpt_cli.adapters.apply import base_parameters
from mem_gpt_cli.attention.backend import attention_note, implementation, kernels_that_ran
from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.devices.card import Card, card_of, summary_of
from mem_gpt_cli.devices.verdict import Verdict, verdict_on
from mem_gpt_cli.ledger.timeline import run_title, timeline_of
from mem_gpt_cli.model.facts import summarise
from mem_gpt_cli.optimizers.bitsandbytes_steps import grows_within_a_step
from mem_gpt_cli.optimizers.build import listed
from mem_gpt_cli.optimizers.notes import notes as optimizer_notes
from mem_gpt_cli.quantization.cost import kept_note
from mem_gpt_cli.quantization.saved import as_saved
from mem_gpt_cli.recipe import as_run, refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import COMPONENTS, PHASES, MemoryReport, ModelSummary, Phase
from mem_gpt_cli.report.cause import cause_of
from mem_gpt_cli.report.timeline import check, write
from mem_gpt_cli.trace.depth import Height, Place, plan_depth
from mem_gpt_cli.trace.dry_run import DryRun, DryRunner
from mem_gpt_cli.trace.events import write_events
from mem_gpt_cli.workload import page_details
from mem_gpt_cli.workload.build import build_on_meta
from mem_gpt_cli.workload.threads import intra_op_threads

LISTED_OPERATORS = 8
"""Operators whose peaks the report lists for each phase."""


def trace(
    recipe: Recipe,
    *,
    full_depth: bool = False,
    events: Path | None = None,
    timeline: Path | None = None,
) -> MemoryReport:
    """Run the recipe's workload on fake tensors and report each phase's peak.

    Args:
        recipe: what to run.
        full_depth: run all layers and all decode steps, instead of as many as determine the rest; for a GPU
            all layers run anyway, because where its allocator puts a block depends on all that came before.
        events: write every birth and death of a storage to this file, as JSON Lines; runs at full depth.
        timeline: draw memory over the events into this .html, .png, .svg or .csv; runs at full depth.

    Raises:
        RecipeError: for an option that cannot be traced.
        UnsupportedError: for a model whose forward cannot be traced; the sentence says why.
    """
    refuse_unavailable(recipe, "trace")
    source = source_of(recipe)
    recipe = as_saved(recipe, source)
    if timeline is not None:
        check(timeline)
    card = card_of(recipe)
    full_depth = full_depth or events is not None or timeline is not None
    with intra_op_threads(recipe.device.threads):
        whole = build_on_meta(source, recipe)
        plan = None if full_depth or card or grows_within_a_step(recipe) else plan_depth(whole, recipe.task)
        dry = DryRunner(source, recipe, full_depth=full_depth, card=card).run(plan)
    dry.warnings.extend((*source.notes, *attention_note(whole, recipe), *kept_note(source, recipe)))
    dry.warnings.extend(optimizer_notes(recipe, listed(whole)))
    dry.details["attention_kernels"] = kernels_that_ran(
        (place.operator for place in dry.places), implementation(recipe)
    )
    if events is not None and dry.log is not None:
        write_events(dry.log, events, as_run(recipe))
    if timeline is not None and dry.curves is not None:
        write(timeline_of(dry.curves, run_title(source.name, recipe, "traced")), timeline)
    if dry.paged is not None:
        dry.details.update(page_details(dry.paged, whole))
    verdict = None
    if card and dry.replayed:
        ending = dry.replayed.within(card.capacity(recipe), card)
        verdict = verdict_on(recipe, card, dry.replayed.whole.fragmentation, ending)
    return report(recipe, summarise(source, whole, base_parameters(whole)), dry, card, verdict)


def report(
    recipe: Recipe,
    model: ModelSummary,
    dry: DryRun,
    card: Card | None = None,
    verdict: Verdict | None = None,
) -> MemoryReport:
    """The report of a dry run; for a GPU with its allocator's view and whether the run fits."""
    ranked = {name: dry.highest(name) for name in PHASES[recipe.task]}
    phases = tuple(_phase(dry, name, *places[0]) for name, places in ranked.items() if places)
    layers = [dry.plan.shallow, dry.plan.deep] if dry.plan else [model.layers]
    return MemoryReport(
        lens="trace",
        task=recipe.task,
        recipe=as_run(recipe),
        model=model,
        device=summary_of(recipe, card),
        phases=phases,
        provenance={
            "peak_allocated_bytes": "traced",
            "components": "traced",
            **(verdict.provenance("traced") if verdict else {}),
        },
        cause=cause_of(max(phases, key=lambda phase: phase.peak_allocated_bytes)),
        reserved_bytes=verdict.reserved_bytes if verdict else None,
        process_bytes=verdict.process_bytes if verdict else None,
        device_bytes=verdict.device_bytes if verdict else None,
        warnings=(*_warnings(dry), *(verdict.warnings if verdict else ())),
        details={
            "operators": {name: _operators(dry, places) for name, places in ranked.items() if places},
            "layers_run": layers,
            "threads": torch.get_num_threads(),
            **dry.details,
            **(verdict.details if verdict else {}),
        },
    )


def _phase(dry: DryRun, name: str, place: Place, height: Height) -> Phase:
    """A phase at its highest place."""
    lower, upper = dry.bounds.get(name, (None, None))
    return Phase(
        name=name,
        peak_allocated_bytes=height.total,
        components=dict(zip(COMPONENTS, height.components, strict=True)),
        peak_operation=place.operator,
        peak_module=dry.module(place) or None,
        lower_bytes=lower,
        upper_bytes=upper,
        reserved_bytes=dry.replayed.reserved.get(name) if dry.replayed else None,
    )


def _operators(dry: DryRun, places: Sequence[tuple[Place, Height]]) -> list[dict[str, Any]]:
    """The highest places of a phase, as the report lists them."""
    return [
        {
            "operation": place.operator,
            "module": dry.module(place) or None,
            "allocated_bytes": height.total,
        }
        for place, height in places[:LISTED_OPERATORS]
    ]


def _warnings(dry: DryRun) -> Iterator[str]:
    yield from dry.warnings
    if dry.unasked_kernels:
        yield (
            f"{dry.unasked_kernels} reduced-precision products are too large to ask the CPU for their "
            "scratch memory; it is not counted"
        )
    if dry.bounds:
        yield (
            "which tokens go to which expert is up to the data: the peaks are those of an even choice, and "
            "each phase has a lower and an upper bound"
        )
