"""What the lenses say of a fine-tune before it begins, and whether its device is large enough."""

from __future__ import annotations

from dataclasses import dataclass

from mem_gpt_cli.errors import GateError, MemgptError, UnsupportedError
from mem_gpt_cli.recipe.changing import changed
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import MemoryReport
from mem_gpt_cli.report.sizes import render_bytes

ENOUGH_STEPS = 2
"""Steps that show the highest peak: the optimizer's state comes with the first."""


@dataclass(frozen=True)
class Prediction:
    """A lens's report of the recipe's training; ``caveat`` where it is not the trace's, and the formula's own
    report where there is one."""

    report: MemoryReport
    formula: MemoryReport | None
    caveat: str | None = None


def predict(recipe: Recipe) -> Prediction:
    """The dry run of the recipe's training step, or the formula for a model that cannot be traced.

    Raises:
        MemgptError: for a recipe that neither can answer for.
    """
    from mem_gpt_cli.estimate import estimate
    from mem_gpt_cli.trace import trace

    steps = min(ENOUGH_STEPS, recipe.finetune.steps or ENOUGH_STEPS)
    sized = changed(recipe, {"workload": {"steps": steps}})
    try:
        formula, no_formula = estimate(sized), ""
    except UnsupportedError as error:
        formula, no_formula = None, str(error)
    try:
        return Prediction(trace(sized), formula)
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


def refuse_too_large(recipe: Recipe, prediction: Prediction, device_bytes: int | None) -> None:
    """Pass a training that fits ``budget.memory`` and the device.

    Args:
        recipe: the recipe.
        prediction: of its training.
        device_bytes: the device's memory; ``None`` where nobody knows.

    Raises:
        GateError: for one that does not.
    """
    report = prediction.report
    allocator = report.details.get("allocator")
    if allocator is not None and allocator["out_of_memory"] is not None:
        death = allocator["out_of_memory"]
        raise GateError(f"it does not fit: {death['phase']} runs out of memory in {death['operation']}")
    limits = {"budget": recipe.budget.memory, "device's memory": device_bytes}
    for name, limit in limits.items():
        if limit is not None and report.allocated_bytes > limit:
            over = report.allocated_bytes - limit
            raise GateError(
                f"it does not fit: {report.peak.name} needs {render_bytes(report.allocated_bytes)}, "
                f"{render_bytes(over)} more than the {name} of {render_bytes(limit)}"
            )


def device_bytes(recipe: Recipe) -> int | None:
    """The memory of the recipe's device; ``None`` where this machine does not have it."""
    from mem_gpt_cli.profile.device import find_device

    try:
        return find_device(recipe.device).summary.total_bytes
    except MemgptError:
        return None
