"""How well a model predicts text that it does not learn: perplexity, by the loss that it is trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from mem_gpt_cli.attention.backend import attention_kernels
from mem_gpt_cli.finetune.data import batches
from mem_gpt_cli.finetune.rows import Rows
from mem_gpt_cli.loss.compute import language_modelling_loss
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.autocast import autocast


@dataclass(frozen=True)
class Evaluation:
    """The mean loss of ``tokens`` tokens, in nats."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss: infinite beyond all numbers, NaN where the loss is."""
        return math.inf if self.loss >= 700 else math.exp(self.loss)

    def as_json(self) -> dict[str, Any]:
        """The evaluation for a file; JSON has no word for what is not finite, so that is ``None``."""
        found = {"perplexity": self.perplexity, "loss": self.loss}
        return {**{name: v if math.isfinite(v) else None for name, v in found.items()}, "tokens": self.tokens}


@torch.no_grad()
def evaluate(model: torch.nn.Module, recipe: Recipe, rows: Rows, device: torch.device) -> Evaluation:
    """Evaluate on ``rows``, ``workload.batch`` of them at once; the model is left in evaluation mode."""
    model.eval()
    chosen = torch.arange(len(rows)).split(recipe.workload.batch)
    total = 0.0
    with attention_kernels(recipe):
        for batch, numbers in zip(batches(rows, chosen, 1.0, recipe, device), chosen, strict=True):
            with autocast(recipe, device):
                loss, _ = language_modelling_loss(model, recipe, batch.tokens, batch.labels, batch.mask)
            total += float(loss) * rows.learnt(numbers)
    tokens = rows.learnt(torch.arange(len(rows)))
    return Evaluation(total / tokens, tokens)
