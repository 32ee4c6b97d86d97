"""What each position is to predict."""

from __future__ import annotations

import torch

IGNORED = -100
"""The label of a position from which nothing is learnt, torch's and transformers' own."""


def next_labels(labels: torch.Tensor) -> torch.Tensor:
    """The label after each position, ``[batch * seq]``; after the last one of a sequence there is none.

    As ``ForCausalLMLoss`` in transformers' loss/loss_utils.py: labels are shifted, never logits.
    """
    padded = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)
    return padded[..., 1:].reshape(-1)
