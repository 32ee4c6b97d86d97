"""How the learning rate rises and falls: transformers' own schedules."""

from __future__ import annotations

from typing import Any

import torch

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Recipe

_NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def check_schedule(recipe: Recipe, steps: int) -> None:
    """Pass a warm-up that ends before the run does.

    Raises:
        RecipeError: for one that does not.
    """
    warmup = recipe.finetune.warmup_steps
    if warmup >= steps:
        raise RecipeError(
            f"finetune.warmup_steps: {warmup} steps of warm-up leave none of the {steps} steps for learning "
            "at the full rate: lower it, or raise finetune.steps",
            position_of(("finetune", "warmup_steps"), recipe.text),
        )


def build_schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of a recipe for ``steps`` steps; ``linear`` and ``cosine`` fall to 0 with the last."""
    from transformers import get_scheduler

    found: Any = get_scheduler(
        _NAMES[recipe.finetune.schedule],
        optimizer,
        num_warmup_steps=recipe.finetune.warmup_steps,
        num_training_steps=steps,
    )
    return found  # type: ignore[no-any-return]
