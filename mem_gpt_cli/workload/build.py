"""The model of a recipe: transformers' own, with the recipe's options applied to it."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from mem_gpt_cli.adapters.apply import adapters_aside, apply_adapters, give_factors
from mem_gpt_cli.adapters.saved import add_saved, fill_saved
from mem_gpt_cli.attention.backend import (
    attention_is_known,
    check_attention,
    implementation,
    prefer_flash_attn,
)
from mem_gpt_cli.attention.kv_heads import converted_weights
from mem_gpt_cli.checkpointing.enable import enable_checkpointing
from mem_gpt_cli.kv_cache.windowed_masks import give_window
from mem_gpt_cli.loss.check import check_loss
from mem_gpt_cli.model import ModelSource
from mem_gpt_cli.model.build import plain_on_meta
from mem_gpt_cli.model.weights import StoredWeights, wants_real_weights
from mem_gpt_cli.quantization.modules import replace_on_meta
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.load import Loading, Watch


def build_on_meta(source: ModelSource, recipe: Recipe, layers: int | None = None) -> torch.nn.Module:
    """The model without memory: every tensor on torch's ``meta`` device.

    Args:
        source: which model.
        recipe: the options that change what is built.
        layers: build that many layers instead of all.
    """
    with attention_is_known(recipe):
        model = plain_on_meta(source, recipe, implementation(recipe), layers)
    check_attention(model, recipe)
    enable_checkpointing(model, recipe)
    give_window(model, source, recipe)
    replace_on_meta(model, recipe)
    model = apply_adapters(model, recipe)
    add_saved(model, source, recipe)
    check_loss(model, recipe)
    return model


def build(source: ModelSource, recipe: Recipe, device: torch.device | None = None) -> torch.nn.Module:
    """The model of a recipe, with real weights where they are local and wanted, else random ones.

    Under ``FakeTensorMode`` this is the same code, and no byte is taken.
    """
    model = build_on_meta(source, recipe)
    device = device or torch.device(recipe.device.name)
    load_model(model, source, recipe, device)
    prefer_flash_attn(model, recipe, device)
    return model


def load_model(
    model: torch.nn.Module,
    source: ModelSource,
    recipe: Recipe,
    device: torch.device,
    *,
    real: bool = True,
    watch: Watch = lambda _: nullcontext(),
) -> None:
    """Give a model of ``build_on_meta`` its memory and values.

    Args:
        model: the model.
        source: which model, as for ``build_on_meta``.
        recipe: its options.
        device: where the memory is taken.
        real: read real weights where there are some; else only their memory is taken.
        watch: entered with the path of each module whose matrix is being quantized.

    Raises:
        EnvironmentUnavailableError: for weights that cannot be read, or are not this model's.
    """
    wanted = wants_real_weights(source, recipe)
    saved = wanted and source.saved_quantization is not None
    convert = converted_weights(source, recipe) if wanted else None
    with adapters_aside(model):
        loading = Loading(model, device, saved=saved, watch=watch)
        loading.run((lambda plain: StoredWeights(plain, source, convert)) if wanted and real else None)
    give_factors(model, device)
    if real and recipe.adapters.load:
        fill_saved(model, source, recipe)
