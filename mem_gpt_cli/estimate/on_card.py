"""The walk of a recipe on a card: once with as much memory as it takes, for the peaks, and where that is more
than there is, once more with what there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mem_gpt_cli.allocator.caching import CachingAllocator
from mem_gpt_cli.allocator.out_of_memory import OutOfMemory
from mem_gpt_cli.allocator.replay import Death
from mem_gpt_cli.allocator.settings import AllocatorSettings
from mem_gpt_cli.devices.card import Card, card_of, summary_of
from mem_gpt_cli.devices.verdict import Ending, Verdict, verdict_on
from mem_gpt_cli.estimate.card_books import CardLedger, RoundedLedger
from mem_gpt_cli.estimate.cuda import CudaKernels
from mem_gpt_cli.estimate.phases import Walk, walk
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import DeviceSummary


class OnCard(NamedTuple):
    """The GPU, the most that each phase had reserved there, and whether it holds the run."""

    device: DeviceSummary
    reserved: Mapping[str, int]
    verdict: Verdict


def walk_on_card(architecture: Architecture, recipe: Recipe, *, packed: bool = False) -> Walk:
    """Walk the recipe's task through the architecture, each storage in a block of the card's allocator.

    ``packed``: the weights come quantized from a folder.

    Raises:
        RecipeError: for a GPU that nobody knows, or settings that torch's allocator would refuse.
    """
    card = card_of(recipe)
    assert card is not None, "a CPU has no card"
    ledger = _ledger(card, card.settings.without_fraction(), None)
    walked = walk(architecture, recipe, ledger, _kernels(recipe, card), packed=packed)
    capacity = card.capacity(recipe)
    ending = Ending(ledger.allocator.stats.retries)
    if ledger.fragmentation.reserved > capacity or card.settings.memory_fraction < 1:
        ending = _within(architecture, recipe, card, capacity, packed=packed)
    verdict = verdict_on(recipe, card, ledger.fragmentation, ending)
    return walked._replace(card=OnCard(summary_of(recipe, card), ledger.reserved, verdict))


def _within(architecture: Architecture, recipe: Recipe, card: Card, capacity: int, *, packed: bool) -> Ending:
    """How the walk ends with no more than ``capacity`` bytes to reserve."""
    ledger = _ledger(card, card.settings, capacity)
    try:
        walk(architecture, recipe, ledger, _kernels(recipe, card), packed=packed)
    except OutOfMemory as error:
        death = Death.of(ledger.events, error)
        return Ending(death.retries, death, ledger.phase, ledger.operation, ledger.module)
    return Ending(ledger.allocator.stats.retries)


def _ledger(card: Card, settings: AllocatorSettings, capacity: int | None) -> CardLedger:
    allocator = CachingAllocator(settings, capacity, device_bytes=card.gpu.total_bytes)
    return CardLedger(allocator)


def quick_walk(architecture: Architecture, recipe: Recipe, *, packed: bool = False) -> Walk:
    """The walk on a card whose allocator finds a block of the right size for everything.

    Raises:
        RecipeError: for a GPU that nobody knows.
    """
    card = card_of(recipe)
    assert card is not None, "a CPU has no card"
    return walk(architecture, recipe, RoundedLedger(), _kernels(recipe, card), packed=packed)


def _kernels(recipe: Recipe, card: Card) -> CudaKernels:
    autocast = recipe.workload.autocast
    return CudaKernels(card.gpu, recipe.model.dtype if autocast == "none" else autocast)
