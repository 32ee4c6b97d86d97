"""What the lenses say of a fine-tune before it begins, and whether its device is large enough."""

from __future__ import annotations

from dataclasses import dataclass

from mem_gpt_cli.devices.host import host_bytes_left
from mem_gpt_cli.errors import EnvironmentUnavailableError, UnsupportedError
from mem_gpt_cli.profile.device import Device, find_device
from mem_gpt_cli.recipe.changing import changed
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import MemoryReport

ENOUGH_STEPS = 2
"""Steps that show the highest peak: the optimizer's state comes with the first."""


@dataclass(frozen=True)
class Prediction:
    """A lens's report of the recipe's training; ``caveat`` where it is not the trace's, and the formula's own
    report where there is one."""

    report: MemoryReport
    formula: MemoryReport | None
    caveat: str | None = None


def sized(recipe: Recipe, steps: int | None) -> Recipe:
    """The recipe with as many of a run's ``steps`` as show its peak; ``None``: it is not known how many."""
    return changed(recipe, {"workload": {"steps": min(ENOUGH_STEPS, steps or ENOUGH_STEPS)}})


def predict(recipe: Recipe) -> Prediction:
    """The dry run of the training step, or the formula for a model that cannot be traced.

    Args:
        recipe: of ``sized``.

    Raises:
        MemgptError: for a recipe that neither can answer for.
    """
    from mem_gpt_cli.estimate import estimate
    from mem_gpt_cli.trace import trace

    try:
        formula, no_formula = estimate(recipe), ""
    except UnsupportedError as error:
        formula, no_formula = None, str(error)
    try:
        return Prediction(trace(recipe), formula)
    except UnsupportedError as error:
        if formula is None:
            raise UnsupportedError(
                f"neither trace nor formula can answer for this training: {error}; {no_formula}"
            ) from error
        return Prediction(formula, formula, f"predicted by formula, because the trace has no answer: {error}")


def try_to_predict(recipe: Recipe) -> Prediction | str:
    """The prediction, or why there is none: a training can run all the same, unless it has a budget.

    Raises:
        MemgptError: for a budget that nothing can be held to.
    """
    try:
        return predict(recipe)
    except UnsupportedError as error:
        if recipe.budget.memory is not None:
            raise
        return str(error)


def limits_of(recipe: Recipe, device: Device | None) -> dict[str, int | None]:
    """What a training may take, as ``refuse_too_large`` takes it.

    The budget is of tensors, as in every lens. Of the machine it counts what is left: this process, with all
    that it holds before it has a model, is no part of a prediction.

    Args:
        recipe: the recipe.
        device: its device; ``None`` where this machine does not have it.
    """
    limits: dict[str, int | None] = {"the budget of {}": recipe.budget.memory}
    if recipe.device.type == "cpu":
        limits["the {} that this machine has left"] = host_bytes_left()
    elif device is not None:
        limits["the device's memory of {}"] = device.summary.total_bytes
    return limits


def device_here(recipe: Recipe) -> Device | None:
    """The recipe's device; ``None`` where this machine does not have it."""
    try:
        return find_device(recipe.device)
    except EnvironmentUnavailableError:
        return None
