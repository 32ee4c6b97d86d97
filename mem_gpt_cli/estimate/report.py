"""Lens 1: ``estimate(recipe)``, the report by formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mem_gpt_cli.adapters.base import adapters_to_load
from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.estimate.books import SLOTS, WIDTHS, Moment
from mem_gpt_cli.estimate.cause import cause_of
from mem_gpt_cli.estimate.caveats import caveats
from mem_gpt_cli.estimate.phases import Walk, walk
from mem_gpt_cli.estimate.work import work
from mem_gpt_cli.kv_cache import cost as cache_cost
from mem_gpt_cli.kv_cache.window import windowed
from mem_gpt_cli.loss.refused import refuse_loss
from mem_gpt_cli.quantization import cost as quantization_cost
from mem_gpt_cli.quantization.plan import plan_of
from mem_gpt_cli.quantization.saved import as_saved, is_packed
from mem_gpt_cli.recipe import as_run, refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import (
    PHASES,
    DeviceSummary,
    MemoryReport,
    ModelSummary,
    Phase,
    components,
)

if TYPE_CHECKING:
    from mem_gpt_cli.model import ModelSource
    from mem_gpt_cli.model.architecture import Architecture


def estimate(recipe: Recipe) -> MemoryReport:
    """Predict the memory of a recipe from its model's numbers, without torch, in milliseconds.

    Each phase's components, in bytes, add up to its peak: they are those of one moment.

    Raises:
        RecipeError: for an option that the formulas do not cover.
        UsageError: for a model that cannot be found, whose config is wrong, or whose adapters are another's.
        UnsupportedError: for a ``model_type`` that no formula knows.
    """
    refuse_unavailable(recipe, "estimate")
    source = source_of(recipe)
    recipe = as_saved(recipe, source)
    adapters_to_load(recipe, source)  # refuses those of another model
    return report_of(recipe, source, source.architecture)


def report_of(recipe: Recipe, source: ModelSource, architecture: Architecture) -> MemoryReport:
    """The report of a recipe whose model is known already; raises ``UnsupportedError`` as ``estimate``."""
    if not architecture.layers:
        raise UnsupportedError(f"{source.name}: a model without layers has no formula")
    refuse_loss(recipe, source.config)
    architecture = windowed(architecture, recipe)
    walked = _walk(architecture, recipe, packed=is_packed(recipe, source))
    card = walked.card
    moments = walked.peaks
    reserved = card.reserved if card else {}
    phases = tuple(
        _phase(name, moments[name], reserved.get(name)) for name in PHASES[recipe.task] if name in moments
    )
    peak = max(phases, key=lambda phase: phase.peak_allocated_bytes)
    return MemoryReport(
        lens="estimate",
        task=recipe.task,
        recipe=as_run(recipe),
        model=ModelSummary(
            name=source.name,
            architecture=architecture.model_type,
            parameters=architecture.parameters,
            layers=len(architecture.layers),
            source=source.source,
        ),
        device=card.device if card else DeviceSummary(recipe.device.type, recipe.device.name),
        phases=phases,
        provenance={
            "peak_allocated_bytes": "formula",
            "components": "formula",
            **(card.verdict.provenance("formula") if card else {}),
        },
        cause=cause_of(peak, moments[peak.name], architecture, recipe),
        reserved_bytes=card.verdict.reserved_bytes if card else None,
        process_bytes=card.verdict.process_bytes if card else None,
        device_bytes=card.verdict.device_bytes if card else None,
        warnings=(*caveats(recipe, source, architecture), *(card.verdict.warnings if card else ())),
        details={**_details(recipe, architecture, walked), **(card.verdict.details if card else {})},
    )


def _walk(architecture: Architecture, recipe: Recipe, *, packed: bool) -> Walk:
    if recipe.device.type == "cpu":
        return walk(architecture, recipe, packed=packed)
    from mem_gpt_cli.estimate.on_card import walk_on_card  # estimates for the CPU start without it

    return walk_on_card(architecture, recipe, packed=packed)


def _phase(name: str, moment: Moment, reserved: int | None) -> Phase:
    counted: dict[str, int] = {}
    for (component, _), nbytes in zip(SLOTS, moment.live, strict=True):
        counted[component] = counted.get(component, 0) + nbytes
    return Phase(
        name=name,
        peak_allocated_bytes=moment.total,
        components=components(**counted),
        peak_operation=moment.operation or None,
        peak_module=moment.module or None,
        reserved_bytes=reserved,
    )


def _details(recipe: Recipe, architecture: Architecture, walked: Walk) -> Mapping[str, Any]:
    """What the report says beyond its columns; all in bytes unless the name says otherwise."""
    details: dict[str, Any] = {
        "highest_by_part": {phase: _parts(tops) for phase, tops in walked.highest.items()},
        "at_peak_by_part": {phase: _parts(moment.live) for phase, moment in walked.peaks.items()},
    }
    if recipe.task == "inference":
        details |= work(architecture, recipe)
        if recipe.kv_cache.kind != "none":
            details |= _cache_per_token(recipe, architecture)
    if walked.offloaded:
        details["offloaded_bytes"] = walked.offloaded
    kept = quantization_cost.kept_in_full(architecture, plan_of(recipe))
    if kept:
        details["kept_in_full_precision"] = list(kept)
    return details


def _parts(live: Sequence[int]) -> dict[str, int]:
    """The slots that hold anything, by role."""
    return {role: nbytes for (_, role), nbytes in zip(SLOTS, live, strict=True) if nbytes}


def _cache_per_token(recipe: Recipe, architecture: Architecture) -> dict[str, int]:
    """What one more token of one sequence adds to the cache; for latent attention by head as well."""
    item = WIDTHS[recipe.workload.autocast] or WIDTHS[recipe.model.dtype]
    attentions = [layer.attention for layer in architecture.layers]
    item = cache_cost.storing(recipe, item).item
    found = {"kv_cache_bytes_per_token": item * sum(map(cache_cost.elements_per_token, attentions))}
    if any(attention.kv_lora_rank for attention in attentions):
        expanded = item * sum(map(cache_cost.expanded_elements_per_token, attentions))
        found["kv_cache_bytes_per_token_expanded"] = expanded
    return found
