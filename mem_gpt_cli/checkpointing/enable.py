"""Which layers keep their input alone and run again in backward."""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.recipe.schema import Recipe


def enable_checkpointing(model: Any, recipe: Recipe) -> None:
    """Checkpoint the layers of a transformers model as the recipe says."""
    if recipe.checkpointing.policy == "full":
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})  # transformers before 5.20 has the older name alone
