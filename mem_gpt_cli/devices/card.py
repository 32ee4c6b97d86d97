"""The GPU that a recipe is answered for, with the settings of torch's allocator there."""

from __future__ import annotations

from dataclasses import dataclass

from mem_gpt_cli.allocator.settings import AllocatorSettings
from mem_gpt_cli.devices.calibration import Calibration, calibration_of
from mem_gpt_cli.devices.catalogue import gpu_of
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.errors import MemgptError, RecipeError
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import DeviceSummary


@dataclass(frozen=True)
class Card:
    """A GPU, assumed where ``why_assumed`` says so; what it takes beside torch's allocator, where known."""

    gpu: Gpu
    why_assumed: str | None
    settings: AllocatorSettings
    calibration: Calibration | None

    @property
    def overhead_bytes(self) -> int | None:
        """The CUDA context and the libraries' code; ``None`` where this GPU was never calibrated."""
        known = self.calibration
        return None if known is None else known.context_bytes + known.library_bytes

    @property
    def baseline_bytes(self) -> int | None:
        """What the idle GPU uses; ``None`` where no calibration tells."""
        return None if self.calibration is None else self.calibration.device_baseline_bytes

    def capacity(self, recipe: Recipe) -> int:
        """Bytes that the allocator can reserve of the budget or the idle GPU, by its settings."""
        idle = self.gpu.total_bytes - (self.baseline_bytes or 0)
        left = min(recipe.budget.memory or idle, idle) - (self.overhead_bytes or 0)
        return max(0, min(left, int(self.settings.memory_fraction * self.gpu.total_bytes)))

    def limited_by_budget(self, recipe: Recipe) -> bool:
        """Whether it is the recipe's budget that ends the run, and not the card itself."""
        return recipe.budget.memory is not None and recipe.budget.memory < self.gpu.total_bytes


def card_of(recipe: Recipe) -> Card | None:
    """The card of a recipe; ``None`` on the CPU.

    Raises:
        RecipeError: for a GPU that nobody knows, or settings that torch's allocator would refuse.
    """
    chosen = gpu_of(recipe)
    if chosen is None:
        return None
    return Card(chosen.gpu, chosen.why, allocator_settings(recipe), calibration_of(chosen.gpu))


def summary_of(recipe: Recipe, card: Card | None) -> DeviceSummary:
    """The device of a report: the CPU, or the GPU by its product's name."""
    if card is None:
        return DeviceSummary(recipe.device.type, recipe.device.name)
    return DeviceSummary(recipe.device.type, card.gpu.product, card.gpu.total_bytes)


def allocator_settings(recipe: Recipe) -> AllocatorSettings:
    """The recipe's settings of CUDA's allocator, or the environment's.

    Raises:
        RecipeError: for settings that torch would refuse.
    """
    text = recipe.device.allocator
    if text is None:
        return AllocatorSettings.from_environment()
    try:
        return AllocatorSettings.parse(text, "device.allocator")
    except MemgptError as error:
        raise RecipeError(str(error), position_of(("device", "allocator"), recipe.text)) from error
