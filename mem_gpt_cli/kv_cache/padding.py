"""Prompts of unlike lengths as one batch: padded on the left, so that each sequence ends where it goes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def left_padding(prompts: Sequence[int], width: int, device: torch.device) -> torch.Tensor | None:
    """Which tokens of a batch count: ``[batch, width]`` of 0 and 1, as tokenizers give an ``attention_mask``.

    Args:
        prompts: tokens of each prompt.
        width: tokens of each row; those beyond the longest prompt have been generated.
        device: where the batch is.

    Returns:
        ``None`` where all prompts are equally long, so that none is padded.
    """
    longest = max(prompts)
    padding = [longest - length for length in prompts]
    if not any(padding):
        return None
    begins = torch.tensor(padding, device=device)[:, None]
    return (torch.arange(width, device=device) >= begins).long()


def one_more(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask once each sequence has another token."""
    return None if mask is None else torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)


def positions(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Positions of the last ``tokens`` of each sequence, ``[batch, tokens]``, padding not counted.

    Padding itself stands at 0, as transformers' ``generate`` has it
    (``GenerationMixin._prepare_position_ids_for_generation``).
    """
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)[:, -tokens:]
