"""The model of a recipe: transformers' own, with the recipe's options applied to it."""

from __future__ import annotations

import torch

from mem_gpt_cli.attention.backend import implementation
from mem_gpt_cli.checkpointing.enable import enable_checkpointing
from mem_gpt_cli.kv_cache.windowed_masks import give_window
from mem_gpt_cli.model import ModelSource
from mem_gpt_cli.model.build import initialise, materialise, plain_on_meta
from mem_gpt_cli.model.weights import load_weights, wants_real_weights
from mem_gpt_cli.recipe.schema import Recipe


def build_on_meta(source: ModelSource, recipe: Recipe, layers: int | None = None) -> torch.nn.Module:
    """The model without memory: every tensor on torch's ``meta`` device.

    Args:
        source: which model.
        recipe: the options that change what is built.
        layers: build that many layers instead of all.
    """
    model = plain_on_meta(source, recipe, implementation(recipe), layers)
    enable_checkpointing(model, recipe)
    give_window(model, source, recipe)
    return model


def build(source: ModelSource, recipe: Recipe, device: torch.device | None = None) -> torch.nn.Module:
    """The model of a recipe, with real weights where they are local and wanted, else random ones.

    Under ``FakeTensorMode`` this is the same code, and no byte is taken.
    """
    device = device or torch.device(recipe.device.name)
    model = build_on_meta(source, recipe)
    materialise(model, device)
    initialise(model)
    if wants_real_weights(source, recipe):
        load_weights(model, source)
    return model
