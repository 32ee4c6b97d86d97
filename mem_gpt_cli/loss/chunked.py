"""The loss over some rows of logits at a time, each computed again in backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from mem_gpt_cli.loss.head import Halves
from mem_gpt_cli.loss.targets import IGNORED, next_labels


def chunked_loss(
    model: torch.nn.Module,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    rows: int,
) -> torch.Tensor:
    """The mean cross entropy of the labels that are learnt, from the logits of ``rows`` positions at a time.

    No more than one chunk of logits is ever alive: each is checkpointed (arXiv:1604.06174), so that autograd
    keeps its hidden states alone. Same value and gradients as over all logits, up to rounding.

    Args:
        model: a causal language model of transformers, in training.
        tokens: ``[batch, seq]`` token ids.
        labels: ``[batch, seq]``; -100 where no token is learnt.
        mask: ``[batch, seq]``, 0 on padding; ``None`` where there is none.
        rows: positions a chunk, those of all sequences counted through.
    """
    halves = Halves(model)
    decoded = halves.decode(tokens, mask)
    hidden = decoded.last_hidden_state
    targets = next_labels(labels)
    chunk = partial(_summed, halves, decoded)
    sums = [
        checkpoint(chunk, part, target, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
        for part, target in zip(
            hidden.reshape(1, -1, hidden.shape[-1]).split(rows, dim=1), targets.split(rows), strict=True
        )
    ]
    return torch.stack(sums).sum() / (targets != IGNORED).sum()


def _summed(halves: Halves, decoded: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed cross entropy of ``[1, rows, hidden]`` states, in fp32 as transformers has it."""
    logits = halves.logits(decoded, hidden).float()
    return torch.nn.functional.cross_entropy(
        logits.view(-1, logits.shape[-1]), targets, ignore_index=IGNORED, reduction="sum"
    )
