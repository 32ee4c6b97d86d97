"""Training: forward, backward, optimizer step, as often as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from mem_gpt_cli.attention.backend import attention_kernels
from mem_gpt_cli.loss.compute import language_modelling_loss
from mem_gpt_cli.optimizers.build import build_optimizer, state_tensors
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.autocast import autocast
from mem_gpt_cli.workload.observer import Observer


class Batch(NamedTuple):
    """What goes through the model at once: ``[batch, seq]`` each.

    ``labels`` are the tokens that are learnt, -100 where none is; ``mask`` is 0 on padding, ``None`` without.
    ``share`` is what its loss counts in that of the step; ``None``: as much as each of the others.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor | None = None
    share: float | None = None


def _nothing() -> None:
    """Nobody to meet before an update."""


class Training:
    """Causal language modelling on ``batch`` sequences of ``lengths.seq`` tokens.

    The lenses run ``steps`` training steps on the same tokens; ``memgpt finetune`` calls ``step`` with data.
    ``before_update`` is called once all gradients of a step are there: several processes share theirs in it.
    """

    def __init__(self, recipe: Recipe, before_update: Callable[[], None] = _nothing) -> None:
        self.recipe = recipe
        self.before_update = before_update
        self.lengths = recipe.lengths
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, once ``prepare`` has made it."""
        assert self._optimizer is not None, "prepare() comes first"
        return self._optimizer

    def prepare(self, model: torch.nn.Module, observer: Observer) -> None:
        """Set the model to training and make the optimizer, whose state comes with its first step."""
        del observer
        model.train()
        self._optimizer = build_optimizer(self.recipe, model)

    def run(self, model: torch.nn.Module, tokens: torch.Tensor, observer: Observer) -> torch.Tensor:
        """Train on ``tokens``, ``[batch, seq]``; returns the loss of the last step, a scalar."""
        observer.mark("activations", [tokens])
        batches = [Batch(tokens, tokens)] * self.recipe.workload.accumulate
        with attention_kernels(self.recipe):
            for _ in range(self.recipe.workload.steps):
                loss = self.step(model, batches, observer)
        return loss

    def step(self, model: torch.nn.Module, batches: Sequence[Batch], observer: Observer) -> torch.Tensor:
        """One step on the mean loss of the batches, which is returned, a scalar.

        The outputs are dropped once the loss is there, unless the recipe holds them.
        """
        recipe = self.recipe
        total: torch.Tensor | None = None
        for batch in batches:
            held: Any = None
            with observer.phase("forward"), autocast(recipe, batch.tokens.device):
                loss, outputs = language_modelling_loss(model, recipe, batch.tokens, batch.labels, batch.mask)
                if recipe.workload.hold_outputs:
                    held = outputs
                del outputs
                share = 1 / len(batches) if batch.share is None else batch.share
                if share != 1:
                    loss = loss * share
            with observer.phase("backward"):
                loss.backward()
                observer.mark("gradients", [p.grad for p in model.parameters()])
            total = loss.detach() if total is None else total + loss.detach()
        self.before_update()
        with observer.phase("optimizer_step"):
            if recipe.workload.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.workload.clip_norm)
            self.optimizer.step()
            observer.mark("optimizer_state", state_tensors(self.optimizer))
        self.optimizer.zero_grad(set_to_none=True)
        del held
        assert total is not None
        return total
