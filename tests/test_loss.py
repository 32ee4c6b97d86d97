"""The losses of a recipe: what they compute, what they refuse, what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from profiled import GPT2, LLAMA, small_recipe

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import RecipeError, UnsupportedError
from mem_gpt_cli.loss.compute import language_modelling_loss
from mem_gpt_cli.loss.cost import Fused, chunk_rows, fused_plan
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.autocast import autocast
from mem_gpt_cli.workload.build import build, build_on_meta

GEMMA2 = {
    "name": "gemma2-2b",
    "config": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "vocab_size": 300,
    },
}


def losses(recipe: Recipe, kinds: tuple[dict[str, Any], ...]) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Loss and gradients of one model with each of the losses, on the same tokens."""
    torch.manual_seed(0)
    model = build(source_of(recipe), recipe).train()
    tokens = torch.randint(0, 300, (2, 37))
    labels = tokens.clone()
    labels[0, :9] = -100
    mask = torch.ones_like(tokens)
    mask[1, 30:] = 0
    labels[1, 30:] = -100
    found = []
    for kind in kinds:
        with_kind = recipe.model_copy(update={"loss": type(recipe.loss).model_validate(kind)})
        with autocast(recipe, tokens.device):
            loss, _ = language_modelling_loss(model, with_kind, tokens, labels, mask)
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad(set_to_none=True)
    return found


def assert_same(found: list[tuple[torch.Tensor, dict[str, Any]]], tolerance: float) -> None:
    (loss, gradients), *others = found
    for other, other_gradients in others:
        torch.testing.assert_close(other.to(loss.dtype), loss, rtol=tolerance, atol=tolerance)
        assert gradients.keys() == other_gradients.keys()
        for name, gradient in gradients.items():
            distance = (gradient.float() - other_gradients[name].float()).norm()
            assert distance <= tolerance * max(gradient.float().norm(), torch.tensor(1e-3)), name


CHUNKED = {"kind": "chunked", "chunk": 16}
FULL = {"kind": "full"}
FUSED = {"kind": "fused"}


@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("policy", ["none", "full"])
def test_value_and_gradients_are_those_of_the_full_loss(model: dict[str, Any], policy: str) -> None:
    recipe = small_recipe(model, "training", checkpointing={"policy": policy})
    assert_same(losses(recipe, (FULL, CHUNKED, {"kind": "chunked", "chunk": 5000}, FUSED)), 1e-4)
