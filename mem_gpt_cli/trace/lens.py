"""``trace(recipe)``: the report of a dry run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mem_gpt_cli.ledger import EventLog
from mem_gpt_cli.model import ModelSource, resolve
from mem_gpt_cli.model.build import attention_note, build_on_meta
from mem_gpt_cli.recipe import refuse_unavailable, resolved
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import COMPONENTS, PHASES, DeviceSummary, MemoryReport, ModelSummary, Phase
from mem_gpt_cli.trace.depth import (
    DepthPlan,
    Height,
    NotLinearError,
    Place,
    extrapolate,
    heights,
    module_at,
    plan_depth,
)
from mem_gpt_cli.trace.events import write_events
from mem_gpt_cli.trace.run import fake_run

LISTED_OPERATORS = 8
"""Operators whose peaks the report lists for each phase."""


@dataclass
class DryRun:
    """What one or two fake runs say of a recipe: how high memory stands at each place of the run."""

    places: Mapping[Place, Height]
    plan: DepthPlan | None = None
    log: EventLog | None = None
    unasked_kernels: int = 0
    warnings: list[str] = field(default_factory=list)

    def highest(self, phase: str) -> list[tuple[Place, Height]]:
        """The places of a phase, the highest first, each operator in each module once."""
        ranked = sorted(
            ((place, height) for place, height in self.places.items() if place.phase == phase),
            key=lambda item: -item[1].total,
        )
        once: dict[tuple[str, str], tuple[Place, Height]] = {}
        for place, height in ranked:
            once.setdefault((place.operator, self.module(place)), (place, height))
        return list(once.values())

    def module(self, place: Place) -> str:
        """The path of the module at a place, in the whole model."""
        return place.module if self.plan is None else module_at(place, self.plan)


def trace(recipe: Recipe, *, full_depth: bool = False, events: Path | None = None) -> MemoryReport:
    """Run the recipe's workload on fake tensors and report each phase's peak.

    Args:
        recipe: what to run.
        full_depth: run all layers and all decode steps, instead of as many as determine the rest.
        events: write every birth and death of a storage to this file, as JSON Lines; runs at full depth.

    Raises:
        RecipeError: for an option that cannot be traced.
        UnsupportedError: for a model whose forward cannot be traced; the sentence says why.
    """
    refuse_unavailable(recipe, "trace")
    source = resolve(recipe.model)
    with intra_op_threads(recipe.device.threads):
        whole = build_on_meta(source, recipe)
        summary = summarise(source, whole)
        plan = None if full_depth or events else plan_depth(whole)
        dry = dry_run(source, recipe, whole, plan, every_step=full_depth or events is not None)
    if events is not None and dry.log is not None:
        write_events(dry.log, events, resolved(recipe))
    dry.warnings.extend(attention_note(whole, recipe))
    return report(recipe, summary, dry)


def dry_run(
    source: ModelSource, recipe: Recipe, whole: torch.nn.Module, plan: DepthPlan | None, *, every_step: bool
) -> DryRun:
    """Run as few layers as the plan asks for, or the whole model where it is not linear in its depth."""
    if plan is not None:
        try:
            return shallow_runs(source, recipe, plan)
        except NotLinearError as error:
            dry = whole_run(whole, recipe, every_step=every_step)
            dry.warnings.append(f"traced at full depth, because depth does not extrapolate: {error}")
            return dry
    return whole_run(whole, recipe, every_step=every_step)


def whole_run(whole: torch.nn.Module, recipe: Recipe, *, every_step: bool) -> DryRun:
    """All layers."""
    run = fake_run(whole, recipe, every_step=every_step)
    return DryRun(heights(run.log.curves()), log=run.log, unasked_kernels=run.unasked_kernels)


def shallow_runs(source: ModelSource, recipe: Recipe, plan: DepthPlan) -> DryRun:
    """Two shallow runs, continued to the full depth."""
    found: list[Mapping[Place, Height]] = []
    unasked = 0
    for layers in (plan.shallow, plan.deep):
        run = fake_run(build_on_meta(source, recipe, layers), recipe, every_step=False)
        found.append(heights(run.log.curves(), plan, layers))
        unasked = run.unasked_kernels
    return DryRun(extrapolate(found[0], found[1], plan.factor), plan=plan, unasked_kernels=unasked)


def report(recipe: Recipe, model: ModelSummary, dry: DryRun) -> MemoryReport:
    """The report of a dry run."""
    phases: list[Phase] = []
    operators: dict[str, list[dict[str, Any]]] = {}
    for name in PHASES[recipe.task]:
        ranked = dry.highest(name)
        if not ranked:
            continue
        place, height = ranked[0]
        phases.append(
            Phase(
                name=name,
                peak_allocated_bytes=height.total,
                components=dict(zip(COMPONENTS, height.components, strict=True)),
                peak_operation=place.operator,
                peak_module=dry.module(place) or None,
            )
        )
        operators[name] = [
            {
                "operation": place.operator,
                "module": dry.module(place) or None,
                "allocated_bytes": height.total,
            }
            for place, height in ranked[:LISTED_OPERATORS]
        ]
    warnings = list(dry.warnings)
    if dry.unasked_kernels:
        warnings.append(
            f"{dry.unasked_kernels} reduced-precision products are too large to ask the CPU for their scratch "
            "memory; it is not counted"
        )
    plan = dry.plan
    return MemoryReport(
        lens="trace",
        task=recipe.task,
        recipe=resolved(recipe),
        model=model,
        device=DeviceSummary(type=recipe.device.type, name=recipe.device.name),
        phases=tuple(phases),
        provenance={"peak_allocated_bytes": "traced", "components": "traced"},
        cause=cause_of(max(phases, key=lambda phase: phase.peak_allocated_bytes)),
        warnings=tuple(warnings),
        details={
            "operators": operators,
            "layers_run": [plan.shallow, plan.deep] if plan else [model.layers],
            "threads": torch.get_num_threads(),
        },
    )


def cause_of(peak: Phase) -> str:
    """The peak in a sentence: phase, operator, module, and the largest component."""
    largest = max(peak.components, key=lambda name: peak.components[name])
    share = 100 * peak.components[largest] / max(1, peak.peak_allocated_bytes)
    where = f" in {peak.peak_module}" if peak.peak_module else ""
    return (
        f"the peak is in {peak.name.replace('_', ' ')}, at {peak.peak_operation}{where}: "
        f"{largest.replace('_', ' ')} hold {share:.0f}%"
    )


def summarise(source: ModelSource, whole: torch.nn.Module) -> ModelSummary:
    """The model's name and size; tied weights count once."""
    return ModelSummary(
        name=source.name,
        architecture=type(whole).__name__,
        parameters=sum(p.numel() for p in whole.parameters()),
        layers=getattr(whole.config.get_text_config(), "num_hidden_layers", None),  # type: ignore[operator, union-attr]
        source=source.source,
    )


@contextmanager
def intra_op_threads(threads: int | None) -> Iterator[None]:
    """Kernels keep a buffer for each thread: count those of the run that is predicted."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
