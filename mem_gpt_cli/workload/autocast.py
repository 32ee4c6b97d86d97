"""Mixed precision by torch's own autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from mem_gpt_cli.model.build import DTYPES
from mem_gpt_cli.recipe.schema import Recipe


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[None]:
    """The autocast context of a recipe for tensors on ``device``; does nothing where it asks for none."""
    if recipe.workload.autocast == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[recipe.workload.autocast])
