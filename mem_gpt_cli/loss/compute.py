"""The loss of a recipe: from token ids to one number."""

from __future__ import annotations

from typing import Any

import torch

from mem_gpt_cli.loss.chunked import chunked_loss
from mem_gpt_cli.loss.cost import DEFAULT_CHUNK
from mem_gpt_cli.loss.fused import fused_loss
from mem_gpt_cli.recipe.schema import Recipe


def language_modelling_loss(
    model: torch.nn.Module,
    recipe: Recipe,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Any]:
    """The mean cross entropy of each label under the tokens before it, and the model's outputs.

    There are outputs for the full loss alone: the others never have all logits.

    Args:
        model: a causal language model of transformers that ``check_loss`` has passed.
        recipe: its options.
        tokens: ``[batch, seq]`` token ids.
        labels: ``[batch, seq]``; -100 where no token is learnt.
        mask: ``[batch, seq]``, 0 on padding; ``None`` where there is none.
    """
    if recipe.loss.kind == "chunked":
        return chunked_loss(model, tokens, labels, mask, recipe.loss.chunk or DEFAULT_CHUNK), None
    if recipe.loss.kind == "fused":
        return fused_loss(model, recipe, tokens, labels, mask), None
    given = {} if mask is None else {"attention_mask": mask}
    outputs = model(input_ids=tokens, labels=labels, use_cache=False, **given)
    return outputs.loss, outputs
