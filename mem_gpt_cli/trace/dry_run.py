"""A dry run of a recipe: in as few layers and as many scenarios as it takes to know every peak."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from mem_gpt_cli.devices.card import Card
from mem_gpt_cli.errors import MemgptError, UnsupportedError
from mem_gpt_cli.ledger import Curves, EventLog
from mem_gpt_cli.model import ModelSource
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import PHASES
from mem_gpt_cli.trace.cuda.replayed import Replayed, replayed
from mem_gpt_cli.trace.depth import (
    DepthPlan,
    Height,
    NotLinearError,
    Place,
    extrapolate,
    heights,
    module_at,
    place_of,
)
from mem_gpt_cli.trace.routing import QUESTIONS, SCENARIOS, Scenario
from mem_gpt_cli.trace.run import FakeRun, fake_run
from mem_gpt_cli.trace.why_not import why_not
from mem_gpt_cli.workload import Paged
from mem_gpt_cli.workload.build import build_on_meta

MICRO_BATCHES = 2
"""Micro-batches of a step that are run: the first, and one that finds gradients, as all after it do."""
MICRO_BATCHES_ON_A_CARD = 3
"""One more than on a CPU: what an allocator keeps of one shapes the next."""
EVERY_STEP_ON_A_CARD = 16
"""New tokens up to which a trace for a GPU runs every decode step; of longer ones the first and the last."""


@dataclass
class DryRun:
    """What fake runs say of a recipe: how high memory stands at each place of the run.

    ``bounds`` holds the lowest and highest peak that a phase can have, where the data decides it. ``curves``
    are those of a run of all layers; ``replayed`` is what a GPU's allocator makes of them.
    """

    places: Mapping[Place, Height]
    plan: DepthPlan | None = None
    curves: Curves | None = None
    replayed: Replayed | None = None
    unasked_kernels: int = 0
    certain: Set[Place] = frozenset()
    asked: bool = False
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    paged: Paged | None = None
    details: dict[str, Any] = field(default_factory=dict)

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

    @property
    def log(self) -> EventLog | None:
        """The events of a run of all layers."""
        return self.curves.log if self.curves else None

    def module(self, place: Place) -> str:
        """The path of the module at a place, in the whole model."""
        return place.module if self.plan is None else module_at(place, self.plan)


class DryRunner:
    """Runs one recipe on fake tensors, in as few layers and as many scenarios as it takes."""

    def __init__(
        self, source: ModelSource, recipe: Recipe, *, full_depth: bool, card: Card | None = None
    ) -> None:
        self.source = source
        self.recipe = recipe
        self.full_depth = full_depth
        self.card = card

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
        on_card = replayed(run.log, self.card) if self.card else None
        curves = on_card.curves if on_card else run.log.curves()
        return DryRun(
            heights(curves),
            curves=curves,
            replayed=on_card,
            unasked_kernels=run.unasked_kernels,
            certain=certain_places(run),
            asked=bool(run.routing and run.routing.asked_in),
            paged=run.paged,
            details=dict(run.details),
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
            paged=runs[1].paged,
        )

    @property
    def _short(self) -> bool:
        """Whether a generation is so short that each step runs: an allocator remembers those between."""
        return self.recipe.lengths.new <= EVERY_STEP_ON_A_CARD

    def _few_batches(self) -> Recipe:
        """The recipe with no more micro-batches than show what all of them do; all of them at full depth."""
        work = self.recipe.workload
        few = min(work.accumulate, MICRO_BATCHES_ON_A_CARD if self.card else MICRO_BATCHES)
        if self.full_depth or few == work.accumulate:
            return self.recipe
        return self.recipe.model_copy(update={"workload": work.model_copy(update={"accumulate": few})})

    def _fake_run(self, layers: int | None, scenario: Scenario | None) -> FakeRun:
        model = build_on_meta(self.source, self.recipe, layers)
        return fake_run(
            model,
            self.source,
            self._few_batches(),
            every_step=self.full_depth or (self.card is not None and self._short),
            scenario=scenario,
            gpu=self.card.gpu if self.card else None,
        )


def certain_places(run: FakeRun, plan: DepthPlan | None = None, layers: int = 0) -> Set[Place]:
    """The places at which memory is the same whatever the data says."""
    if run.routing is None:
        return frozenset()
    return {
        place_of(operation, run.log, plan, layers)
        for operation in run.log.operations
        if run.routing.certain(operation.module)
    }
