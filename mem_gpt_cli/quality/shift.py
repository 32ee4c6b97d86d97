"""How far a change of its weights moves a model's logits, measured on a text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mem_gpt_cli.attention.backend import attention_kernels
from mem_gpt_cli.quality.scores import Scores, Shelf
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.autocast import autocast


@dataclass(frozen=True)
class Shift:
    """The distance of logits after a change from those before, over the ``tokens`` of a text.

    ``relative_norm`` is the norm of the difference over that of the logits before, ``largest`` the largest
    difference of one logit; ``kl_divergence`` is KL(before, after) in nats, the mean over the tokens, and
    ``top1_agreement`` the share of the tokens where both find the same next token likeliest.
    """

    relative_norm: float
    largest: float
    kl_divergence: float
    top1_agreement: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


class Logits:
    """The logits of a model on windows of tokens, ``[windows, tokens]``, before and after a change of it.

    Those before lie in a file: of a large vocabulary they would be more than the model.
    """

    def __init__(self, recipe: Recipe, windows: torch.Tensor, kept: Shelf) -> None:
        self._recipe, self._windows, self._kept = recipe, windows, kept

    def keep(self, model: torch.nn.Module) -> None:
        """Take down the logits before the change."""
        for row, logits in self._of(model):
            self._kept.put(row, logits, self._windows.numel())

    def shift(self, model: torch.nn.Module) -> Shift:
        """The distance of the logits that the model has now from those that were kept."""
        squares = of_difference = largest = 0.0
        scores = Scores()
        for row, logits in self._of(model):
            before = self._kept.take(row, len(logits)).to(logits.device)
            difference = logits - before
            of_difference += float(difference.double().square().sum())
            squares += float(before.double().square().sum())
            largest = max(largest, float(difference.abs().max()))
            scores.compare(logits.log_softmax(-1), before.log_softmax(-1))
        assert scores.kl_divergence is not None
        assert scores.top1_agreement is not None
        return Shift(
            relative_norm=math.sqrt(of_difference / squares) if squares else 0.0,
            largest=largest,
            kl_divergence=max(scores.kl_divergence, 0.0),  # of two equal ones it may be -1e-12
            top1_agreement=scores.top1_agreement,
            tokens=self._windows.numel(),
        )

    def _of(self, model: torch.nn.Module) -> Iterator[tuple[int, torch.Tensor]]:
        """The first token's place and the logits ``[tokens, vocabulary]`` in fp32 of each window."""
        device = next(model.parameters()).device
        for number, window in enumerate(self._windows):
            with torch.inference_mode(), attention_kernels(self._recipe), autocast(self._recipe, device):
                logits = model(window[None].to(device), use_cache=False).logits[0]
            yield number * len(window), logits.float()
