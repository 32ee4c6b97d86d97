"""The code that is run: the same under trace and profile."""

from __future__ import annotations

from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.inference import Inference
from mem_gpt_cli.workload.observer import Observer, Unobserved
from mem_gpt_cli.workload.paged import Paged, page_details, pool_of
from mem_gpt_cli.workload.training import Training

__all__ = ["Inference", "Observer", "Paged", "Training", "Unobserved", "page_details", "workload_of"]


def workload_of(recipe: Recipe) -> Inference | Paged | Training:
    """The workload of a recipe's task."""
    if recipe.task == "inference" and recipe.kv_cache.kind == "paged":
        return Paged(recipe, pool_of(recipe))
    return Training(recipe) if recipe.task == "training" else Inference(recipe)
