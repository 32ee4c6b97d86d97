"""Training: forward, backward, optimizer step, as often as the recipe says."""

from __future__ import annotations

from typing import Any, cast

import torch

from mem_gpt_cli.attention.backend import attention_kernels
from mem_gpt_cli.optimizers.build import build_optimizer, state_tensors
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.autocast import autocast
from mem_gpt_cli.workload.observer import Observer


class Training:
    """Causal language modelling on ``batch`` sequences of ``lengths.seq`` tokens."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.lengths = recipe.lengths
        self._optimizer: torch.optim.Optimizer | None = None

    def prepare(self, model: torch.nn.Module, observer: Observer) -> None:
        """Set the model to training and make the optimizer, whose state comes with its first step."""
        del observer
        model.train()
        self._optimizer = build_optimizer(self.recipe, [p for p in model.parameters() if p.requires_grad])

    def run(self, model: torch.nn.Module, tokens: torch.Tensor, observer: Observer) -> torch.Tensor:
        """Train on ``tokens``, ``[batch, seq]``; returns the loss of the last step, a scalar."""
        observer.mark("activations", [tokens])
        with attention_kernels(self.recipe):
            for _ in range(self.recipe.workload.steps):
                loss = self.step(model, tokens, observer)
        return loss

    def step(self, model: torch.nn.Module, tokens: torch.Tensor, observer: Observer) -> torch.Tensor:
        """One step; the outputs are dropped once the loss is there, unless the recipe holds them."""
        optimizer = self._optimizer
        assert optimizer is not None, "prepare() comes before step()"
        held: Any = None
        with observer.phase("forward"), autocast(self.recipe, tokens.device):
            outputs = model(input_ids=tokens, labels=tokens, use_cache=False)
            loss = outputs.loss
            if self.recipe.workload.hold_outputs:
                held = outputs
            del outputs
        with observer.phase("backward"):
            loss.backward()
            observer.mark("gradients", [p.grad for p in model.parameters()])
        with observer.phase("optimizer_step"):
            optimizer.step()
            observer.mark("optimizer_state", state_tensors(optimizer))
        optimizer.zero_grad(set_to_none=True)
        del held
        return cast(torch.Tensor, loss.detach())
