"""The code that is run: the same under trace and profile."""

from __future__ import annotations

from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.inference import Inference
from mem_gpt_cli.workload.observer import Observer, Unobserved
from mem_gpt_cli.workload.training import Training

__all__ = ["Inference", "Observer", "Training", "Unobserved", "workload_of"]


def workload_of(recipe: Recipe) -> Inference | Training:
    """The workload of a recipe's task."""
    return Training(recipe) if recipe.task == "training" else Inference(recipe)
