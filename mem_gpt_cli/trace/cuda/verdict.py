"""Whether a run fits its GPU, and if not, where it dies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mem_gpt_cli.allocator.replay import Replay
from mem_gpt_cli.devices.card import Card
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.trace.cuda.replayed import Replayed


@dataclass(frozen=True)
class Verdict:
    """The ladder above the allocated bytes, and what becomes of the run in the memory that there is."""

    reserved_bytes: int
    process_bytes: int | None
    device_bytes: int | None
    warnings: tuple[str, ...]
    details: Mapping[str, Any]


def verdict_on(recipe: Recipe, card: Card, replayed: Replayed) -> Verdict:
    """Judge a replayed run against the recipe's budget, or else the memory of its card."""
    reserved, overhead = replayed.whole.peak_reserved, card.overhead_bytes
    process = None if overhead is None else reserved + overhead
    baseline = card.calibration.device_baseline_bytes if card.calibration else None
    capacity = card.capacity(recipe)
    within = replayed.within(capacity, card)
    fragmentation = replayed.whole.fragmentation
    details: dict[str, Any] = {
        "allocator": {
            "fragmentation": asdict(fragmentation) | {"unallocated": fragmentation.unallocated},
            "capacity_bytes": capacity,
            "retries": within.retries,
            "out_of_memory": _death(replayed, within),
        }
    }
    return Verdict(
        reserved_bytes=reserved,
        process_bytes=process,
        device_bytes=None if process is None or baseline is None else process + baseline,
        warnings=tuple(_warnings(recipe, card, replayed, within)),
        details=details,
    )


def _death(replayed: Replayed, within: Replay) -> dict[str, Any] | None:
    """Where the run dies, as the report holds it; ``None`` where it lives."""
    if within.death is None:
        return None
    phase, operation = replayed.place_of(within.death)
    return asdict(within.death) | {
        "phase": phase,
        "operation": operation.name,
        "module": operation.module or None,
    }


def _warnings(recipe: Recipe, card: Card, replayed: Replayed, within: Replay) -> Iterator[str]:
    if card.assumed:
        yield (
            f"{recipe.device.name!r} names no GPU and none is here: kernels and memory are those of an "
            f"{card.gpu.product}; name yours, e.g. --device h100"
        )
    if card.overhead_bytes is None:
        yield (
            f"what CUDA and its libraries take beside torch's allocator is not calibrated for "
            f"{card.gpu.name}: the process takes some hundred MiB more than is reserved "
            "(see `memgpt doctor --calibrate`)"
        )
    limit = "budget" if recipe.budget.memory else card.gpu.name
    capacity = render_bytes(card.capacity(recipe))
    if within.death is not None:
        death, (phase, operation) = within.death, replayed.place_of(within.death)
        where = f"{operation.name} in {operation.module}" if operation.module else operation.name
        yield (
            f"out of memory: of the {capacity} that the {limit} leaves to torch, {phase} has reserved "
            f"{render_bytes(death.reserved)}, {render_bytes(death.reserved_but_unallocated)} of it "
            f"unallocated, when {where} asks for {render_bytes(death.requested)} more"
        )
    elif within.retries:
        yield (
            f"it fits the {capacity} that the {limit} leaves to torch only by giving cached memory back "
            f"{within.retries} times, which is slow"
        )
