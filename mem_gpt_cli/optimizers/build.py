"""The optimizer of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mem_gpt_cli.recipe.schema import Recipe


def build_optimizer(recipe: Recipe, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW in the recipe's implementation; ``auto`` leaves the choice to torch."""
    implementation = recipe.optimizer.implementation
    return torch.optim.AdamW(
        parameters,
        lr=recipe.optimizer.lr,
        weight_decay=recipe.optimizer.weight_decay,
        foreach={"loop": False, "foreach": True, "fused": False, "auto": None}[implementation],
        fused=True if implementation == "fused" else None,
    )


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Every tensor that the optimizer keeps between steps."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                yield value
