"""A model with learned positions cannot run beyond them: better said before the run than in its middle."""

from __future__ import annotations

import torch

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model import ModelSource
from mem_gpt_cli.model.positions import learned_positions
from mem_gpt_cli.recipe.schema import Recipe


def refuse_beyond_positions(source: ModelSource, recipe: Recipe, model: torch.nn.Module) -> None:
    """Pass a recipe whose sequences fit; the last new token is never fed back, so it needs no position.

    Raises:
        UsageError: for a sequence longer than the model's table of learned positions.
    """
    positions = learned_positions(source, model)
    needed = recipe.lengths.seq - (1 if recipe.task == "inference" else 0)
    if positions is not None and needed > positions:
        raise UsageError(
            f"{source.name}'s learned positions end at {positions}, the workload needs {needed}: "
            f"use workload.seq={positions} or less, or a longer table of positions by model.config"
        )
