"""Inference: a prefill of the prompt, then one token after the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, KeysView
from typing import Any, NamedTuple

import torch

from mem_gpt_cli.attention.backend import attention_kernels
from mem_gpt_cli.kv_cache.build import new_cache
from mem_gpt_cli.kv_cache.padding import left_padding, one_more, positions
from mem_gpt_cli.kv_cache.storage import cache_tensors
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.autocast import autocast
from mem_gpt_cli.workload.observer import Observer


class State(NamedTuple):
    """A generation under way: all tokens so far, ``[batch, length]``, and the model's cache of them.

    ``mask`` says which of the tokens count, ``[batch, length]``, where prompts of unlike lengths were padded.
    """

    sequence: torch.Tensor
    cache: Any = None
    mask: torch.Tensor | None = None


Pick = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Each row's next token, ``[batch, 1]``, from its logits, ``[batch, vocabulary]``, and all tokens so far."""


def likeliest(logits: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    """The token with the highest logit."""
    return logits.argmax(dim=-1, keepdim=True)


class Inference:
    """Generation of ``lengths.new`` tokens for ``batch`` prompts of ``lengths.prompt`` tokens, greedy unless
    ``pick`` says otherwise.

    The first new token comes out of the prefill; each of the others is one ``decode`` step, with the cache
    of the steps before it or, without a cache, over the whole sequence again. Unlike prompts stand at the
    right of their rows; what is before them is padding, whatever tokens it is made of.
    """

    def __init__(self, recipe: Recipe, pick: Pick = likeliest) -> None:
        self.recipe = recipe
        self.pick = pick
        self.lengths = recipe.lengths
        self.use_cache = recipe.kv_cache.kind != "none"

    @property
    def decode_steps(self) -> int:
        """Decode steps after the prefill."""
        return self.lengths.new - 1

    def prepare(self, model: torch.nn.Module, observer: Observer) -> None:
        """Set the model to inference."""
        del observer
        model.eval()

    def run(self, model: torch.nn.Module, tokens: torch.Tensor, observer: Observer) -> torch.Tensor:
        """Generate; ``tokens`` is the prompt, ``[batch, prompt]``; returns ``[batch, prompt + new]``."""
        state = self.prefill(model, tokens, observer)
        for _ in range(self.decode_steps):
            state = self.decode(model, state, observer)
        return state.sequence

    def prefill(self, model: torch.nn.Module, tokens: torch.Tensor, observer: Observer) -> State:
        """The prompt in one pass, and the first new token."""
        observer.mark("activations", [tokens])
        with observer.phase("prefill"):
            mask = left_padding(self.recipe.prompts, tokens.shape[1], tokens.device)
            observer.mark("activations", [mask])
            state = State(tokens, new_cache(model, self.recipe), mask)
            return self._forward(model, state, tokens, observer)

    def decode(self, model: torch.nn.Module, state: State, observer: Observer) -> State:
        """One more token."""
        with observer.phase("decode"):
            tokens = state.sequence[:, -1:] if self.use_cache else state.sequence
            return self._forward(model, state, tokens, observer)

    @torch.no_grad()
    def _forward(
        self, model: torch.nn.Module, state: State, tokens: torch.Tensor, observer: Observer
    ) -> State:
        options: dict[str, Any] = {"use_cache": self.use_cache}
        accepted = accepted_arguments(model)
        if state.cache is not None:
            options["past_key_values"] = state.cache
        if state.mask is not None:
            options["attention_mask"] = state.mask
            if "position_ids" in accepted:
                options["position_ids"] = positions(state.mask, tokens.shape[1])
        if self.recipe.workload.logits == "last" and "logits_to_keep" in accepted:
            options["logits_to_keep"] = 1
        with autocast(self.recipe, tokens.device), attention_kernels(self.recipe):
            outputs = model(input_ids=tokens, **options)
        observer.mark("logits", [outputs.logits])
        cache = outputs.get("past_key_values") if self.use_cache else None
        observer.mark("kv_cache", cache_tensors(cache))
        token = self.pick(outputs.logits[:, -1, :], state.sequence)
        return State(torch.cat([state.sequence, token], dim=1), cache, one_more(state.mask))


def accepted_arguments(model: torch.nn.Module) -> KeysView[str]:
    """The names of the arguments of a model's forward."""
    return inspect.signature(model.forward).parameters.keys()
