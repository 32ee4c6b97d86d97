"""Whether a run fits its GPU, and if not, where it dies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mem_gpt_cli.allocator.replay import Death, Fragmentation
from mem_gpt_cli.devices.card import Card
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import Provenance
from mem_gpt_cli.report.sizes import render_bytes


@dataclass(frozen=True)
class Verdict:
    """The ladder above the allocated bytes, and what becomes of the run in the memory that there is."""

    reserved_bytes: int
    process_bytes: int | None
    device_bytes: int | None
    warnings: tuple[str, ...]
    details: Mapping[str, Any]

    def provenance(self, reserved: Provenance) -> dict[str, Provenance]:
        """Where each figure comes from, ``reserved`` being the lens's own."""
        return {
            "reserved_bytes": reserved,
            "process_bytes": "unavailable" if self.process_bytes is None else "calibrated",
            "device_bytes": "unavailable" if self.device_bytes is None else "calibrated",
        }


@dataclass(frozen=True)
class Ending:
    """What becomes of a run in a given amount of memory.

    ``retries`` counts the requests for which the cache was emptied; a death has its phase, its operation and,
    where it is known, its module.
    """

    retries: int = 0
    death: Death | None = None
    phase: str = ""
    operation: str = ""
    module: str = ""


def verdict_on(recipe: Recipe, card: Card, fragmentation: Fragmentation, within: Ending) -> Verdict:
    """Judge a run on its card.

    Args:
        recipe: the options, with the budget where there is one.
        card: the GPU.
        fragmentation: what was reserved, without a limit, at its highest.
        within: the run's ending in ``card.capacity(recipe)``.
    """
    reserved, overhead = fragmentation.reserved, card.overhead_bytes
    process = None if overhead is None else reserved + overhead
    baseline = card.baseline_bytes
    details: dict[str, Any] = {
        "allocator": {
            "fragmentation": asdict(fragmentation) | {"unallocated": fragmentation.unallocated},
            "capacity_bytes": card.capacity(recipe),
            "retries": within.retries,
            "out_of_memory": _death(within),
        }
    }
    return Verdict(
        reserved_bytes=reserved,
        process_bytes=process,
        device_bytes=None if process is None or baseline is None else process + baseline,
        warnings=tuple(_warnings(recipe, card, within)),
        details=details,
    )


def _death(within: Ending) -> dict[str, Any] | None:
    """Where the run dies, as the report holds it; ``None`` where it lives."""
    if within.death is None:
        return None
    return asdict(within.death) | {
        "phase": within.phase,
        "operation": within.operation,
        "module": within.module or None,
    }


def _warnings(recipe: Recipe, card: Card, within: Ending) -> Iterator[str]:
    if card.why_assumed:
        yield (
            f"{recipe.device.name!r} names no GPU and {card.why_assumed}: kernels and memory are those of an "
            f"{card.gpu.product}; name yours, e.g. --device h100"
        )
    if card.overhead_bytes is None:
        yield (
            f"what CUDA and its libraries take beside torch's allocator is not calibrated for "
            f"{card.gpu.name}: the process takes some hundred MiB more than is reserved "
            "(see `memgpt doctor --calibrate`)"
        )
    if card.settings.without_effect:
        names = " and ".join(card.settings.without_effect)
        yield f"{names} of the allocator's settings changes nothing here; docs/allocator.md says when it does"
    limit = "budget" if card.limited_by_budget(recipe) else card.gpu.name
    capacity = render_bytes(card.capacity(recipe))
    if within.death is not None:
        death = within.death
        where = f"{within.operation} in {within.module}" if within.module else within.operation
        yield (
            f"out of memory: of the {capacity} that the {limit} leaves to torch, {within.phase} has reserved "
            f"{render_bytes(death.reserved)}, {render_bytes(death.reserved_but_unallocated)} of it "
            f"unallocated, when {where} asks for {render_bytes(death.requested)} more"
        )
    elif within.retries:
        yield (
            f"it fits the {capacity} that the {limit} leaves to torch only by giving cached memory back "
            f"{within.retries} times, which is slow"
        )
