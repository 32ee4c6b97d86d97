"""``trace(recipe)``: the report of a dry run."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mem_gpt_cli.errors import MemgptError, UnsupportedError
from mem_gpt_cli.ledger import EventLog
from mem_gpt_cli.ledger.timeline import run_title, timeline_of
from mem_gpt_cli.model import ModelSource, resolve
from mem_gpt_cli.model.build import attention_note, build_on_meta
from mem_gpt_cli.model.facts import summarise
from mem_gpt_cli.recipe import as_run, refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import COMPONENTS, PHASES, DeviceSummary, MemoryReport, ModelSummary, Phase
from mem_gpt_cli.report.cause import cause_of
from mem_gpt_cli.report.timeline import check, write
from mem_gpt_cli.trace.depth import (
    DepthPlan,
    Height,
    NotLinearError,
    Place,
    extrapolate,
    heights,
    module_at,
    place_of,
    plan_depth,
)
from mem_gpt_cli.trace.events import write_events
from mem_gpt_cli.trace.routing import QUESTIONS, SCENARIOS, Scenario
from mem_gpt_cli.trace.run import FakeRun, fake_run
from mem_gpt_cli.trace.why_not import why_not
from mem_gpt_cli.workload.threads import intra_op_threads

LISTED_OPERATORS = 8
"""Operators whose peaks the report lists for each phase."""


@dataclass
class DryRun:
    """What fake runs say of a recipe: how high memory stands at each place of the run.

    ``bounds`` holds the lowest and highest peak that a phase can have, where the data decides it.
    """

    places: Mapping[Place, Height]
    plan: DepthPlan | None = None
    log: EventLog | None = None
    unasked_kernels: int = 0
    certain: Set[Place] = frozenset()
    asked: bool = False
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
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

    def peak(self, phase: str, among: Set[Place] | None = None) -> int:
        """The highest total of a phase, among some places or all; 0 where there is none."""
        return max(
            (
                height.total
                for place, height in self.places.items()
                if place.phase == phase and (among is None or place in among)
            ),
            default=0,
        )

    def module(self, place: Place) -> str:
        """The path of the module at a place, in the whole model."""
        return place.module if self.plan is None else module_at(place, self.plan)


class DryRunner:
    """Runs one recipe on fake tensors, in as few layers and as many scenarios as it takes."""

    def __init__(self, source: ModelSource, recipe: Recipe, *, full_depth: bool) -> None:
        self.source = source
        self.recipe = recipe
        self.full_depth = full_depth

    def run(self, plan: DepthPlan | None) -> DryRun:
        """The dry run; with bounds where the model asks about data.

        Raises:
            UnsupportedError: for a model whose forward cannot be traced; the sentence says why.
        """
        try:
            return self._bounded(plan)
        except MemgptError:
            raise
        except Exception as error:  # whatever a model's own code raises on fake tensors
            raise UnsupportedError(f"{self.source.name} cannot be traced: {why_not(error)}") from error

    def _bounded(self, plan: DepthPlan | None) -> DryRun:
        try:
            return self._any_depth(plan, None)
        except QUESTIONS:
            balanced = self._any_depth(plan, SCENARIOS[0])
        if balanced.asked:  # else all that was asked followed from what the run itself had made
            others = [self._any_depth(plan, scenario) for scenario in SCENARIOS[1:]]
            balanced.bounds = {
                phase: (
                    balanced.peak(phase, balanced.certain),
                    max(dry.peak(phase) for dry in (balanced, *others)),
                )
                for phase in PHASES[self.recipe.task]
            }
        return balanced

    def _any_depth(self, plan: DepthPlan | None, scenario: Scenario | None) -> DryRun:
        if plan is None:
            return self._whole(scenario)
        try:
            return self._shallow(plan, scenario)
        except NotLinearError as error:
            dry = self._whole(scenario)
            dry.warnings.append(f"traced at full depth, because depth does not extrapolate: {error}")
            return dry

    def _whole(self, scenario: Scenario | None) -> DryRun:
        run = self._fake_run(None, scenario)
        return DryRun(
            heights(run.log.curves()),
            log=run.log,
            unasked_kernels=run.unasked_kernels,
            certain=certain_places(run),
            asked=bool(run.routing and run.routing.asked_in),
        )

    def _shallow(self, plan: DepthPlan, scenario: Scenario | None) -> DryRun:
        runs = [self._fake_run(layers, scenario) for layers in (plan.shallow, plan.deep)]
        low, high = (
            heights(run.log.curves(), plan, layers)
            for run, layers in zip(runs, (plan.shallow, plan.deep), strict=True)
        )
        return DryRun(
            extrapolate(low, high, plan.factor),
            plan=plan,
            unasked_kernels=runs[1].unasked_kernels,
            certain=certain_places(runs[0], plan, plan.shallow),
            asked=any(run.routing and run.routing.asked_in for run in runs),
        )

    def _fake_run(self, layers: int | None, scenario: Scenario | None) -> FakeRun:
        model = build_on_meta(self.source, self.recipe, layers)
        return fake_run(model, self.recipe, every_step=self.full_depth, scenario=scenario)


def certain_places(run: FakeRun, plan: DepthPlan | None = None, layers: int = 0) -> Set[Place]:
    """The places at which memory is the same whatever the data says."""
    if run.routing is None:
        return frozenset()
    return {
        place_of(operation, run.log, plan, layers)
        for operation in run.log.operations
        if run.routing.certain(operation.module)
    }


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
        full_depth: run all layers and all decode steps, instead of as many as determine the rest.
        events: write every birth and death of a storage to this file, as JSON Lines; runs at full depth.
        timeline: draw memory over the events into this .html, .png, .svg or .csv; runs at full depth.

    Raises:
        RecipeError: for an option that cannot be traced.
        UnsupportedError: for a model whose forward cannot be traced; the sentence says why.
    """
    refuse_unavailable(recipe, "trace")
    source = resolve(recipe.model)
    if timeline is not None:
        check(timeline)
    full_depth = full_depth or events is not None or timeline is not None
    with intra_op_threads(recipe.device.threads):
        whole = build_on_meta(source, recipe)
        plan = None if full_depth else plan_depth(whole, recipe.task)
        dry = DryRunner(source, recipe, full_depth=full_depth).run(plan)
    dry.warnings.extend((*source.notes, *attention_note(whole, recipe)))
    if events is not None and dry.log is not None:
        write_events(dry.log, events, as_run(recipe))
    if timeline is not None and dry.log is not None:
        write(timeline_of(dry.log.curves(), run_title(source.name, recipe, "traced")), timeline)
    return report(recipe, summarise(source, whole), dry)


def report(recipe: Recipe, model: ModelSummary, dry: DryRun) -> MemoryReport:
    """The report of a dry run."""
    phases: list[Phase] = []
    operators: dict[str, list[dict[str, Any]]] = {}
    for name in PHASES[recipe.task]:
        ranked = dry.highest(name)
        if not ranked:
            continue
        place, height = ranked[0]
        lower, upper = dry.bounds.get(name, (None, None))
        phases.append(
            Phase(
                name=name,
                peak_allocated_bytes=height.total,
                components=dict(zip(COMPONENTS, height.components, strict=True)),
                peak_operation=place.operator,
                peak_module=dry.module(place) or None,
                lower_bytes=lower,
                upper_bytes=upper,
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
            f"{dry.unasked_kernels} reduced-precision products are too large to ask the CPU for their "
            "scratch memory; it is not counted"
        )
    if dry.bounds:
        warnings.append(
            "which tokens go to which expert is up to the data: the peaks are those of an even choice, and "
            "each phase has a lower and an upper bound"
        )
    plan = dry.plan
    return MemoryReport(
        lens="trace",
        task=recipe.task,
        recipe=as_run(recipe),
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
