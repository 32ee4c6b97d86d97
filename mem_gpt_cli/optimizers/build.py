"""The optimizer of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mem_gpt_cli.optimizers.cost import implementation
from mem_gpt_cli.recipe.schema import Recipe


def build_optimizer(recipe: Recipe, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW over what a model trains, in the recipe's implementation; ``auto`` is torch's own choice.

    It is said outright, because a dry run for CUDA has its tensors elsewhere.
    """
    chosen = implementation(recipe.optimizer.implementation, recipe.device.type)
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=recipe.optimizer.lr,
        weight_decay=recipe.optimizer.weight_decay,
        foreach=chosen == "foreach",
        fused=True if chosen == "fused" else None,
    )


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Every tensor that the optimizer keeps between steps."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                yield value
