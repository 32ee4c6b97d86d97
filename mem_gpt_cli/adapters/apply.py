"""LoRA factors beside a model's matrices, through peft; everything else is frozen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mem_gpt_cli.adapters.cost import alpha_of, rank_of
from mem_gpt_cli.adapters.library import peft
from mem_gpt_cli.adapters.targets import Matrix, targeted
from mem_gpt_cli.model.build import empty_like_on
from mem_gpt_cli.quantization.modules import parameter_count, quantized_layers, set_module
from mem_gpt_cli.recipe.schema import Recipe

NAME = "default"
"""What peft calls an adapter that was given no name."""


def apply_adapters(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    """Put fresh LoRA factors on ``meta`` beside the matrices that the recipe names, and freeze all else.

    The model is changed in place and returned: it keeps its class and its names, but each of those layers is
    now peft's LoRA layer of the same name, with the layer itself as its ``base_layer``
    (``peft.inject_adapter_in_model``). The factors are in fp32, whatever the model's dtype.

    Args:
        model: a model on ``meta``, quantized layers in their places.
        recipe: its options.

    Raises:
        RecipeError: for a target that names no matrix.
    """
    if recipe.adapters.kind == "none":
        return model
    matrices = _matrices(model)
    names: list[Matrix] = [(path, role) for path, role, _ in matrices]
    family: Any = model.config
    chosen = set(targeted(names, recipe, family.model_type))
    layers = [layer for path, _, layer in matrices if path in chosen]
    config = lora_config(recipe, _ends(chosen, model), transposed=any(map(_is_conv1d, layers)))
    inject(model, config, NAME)
    return model


def inject(model: torch.nn.Module, config: Any, name: str) -> None:
    """Put the factors of peft's ``config`` beside the matrices that it names, on ``meta``, as ``name``.

    The names are those of the model as it is: peft would take some for those of older versions, in which
    experts were linear layers of their own, and put factors beside stacked ones.
    """
    config._register_custom_module(_peft_layers(model))
    conversion = peft().utils.transformers_weight_conversion
    with (
        torch.device("meta"),
        mock.patch.object(conversion, "convert_peft_config_for_transformers"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # on layers of ours, and on Conv1D beside others: both are known here
        peft().inject_adapter_in_model(config, model, name)


def lora_config(recipe: Recipe, targets: list[str], *, transposed: bool = False) -> Any:
    """peft's config of the recipe's adapters; ``transposed`` says that the matrices are ``Conv1D``'s."""
    section, alpha = recipe.adapters, alpha_of(recipe)
    return peft().LoraConfig(
        r=rank_of(recipe),
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=section.dropout or 0.0,
        target_modules=section.targets or targets,
        fan_in_fan_out=transposed,
        task_type=peft().TaskType.CAUSAL_LM,
        base_model_name_or_path=recipe.model.name,
    )


def adapter_tensors(model: torch.nn.Module) -> Iterator[Tensor]:
    """Every factor of every adapter on the model."""
    for _, layer in adapted_layers(model):
        for table in (layer.lora_A, layer.lora_B):
            yield from table.parameters()


def adapted_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Each layer that has adapters, peft's ``LoraLayer``, with its path."""
    for path, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            yield path, module


def base_parameters(model: torch.nn.Module) -> int:
    """The parameters of a model on ``meta`` without its adapters, tied ones once."""
    with adapters_aside(model):
        return parameter_count(model)


def linear_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Each layer that can have adapters, as it is without, by its path without."""
    for path, _, layer in _matrices(model):
        if ".lora_" not in path:
            yield path.removesuffix(".base_layer"), layer


@contextmanager
def adapters_aside(model: torch.nn.Module) -> Iterator[None]:
    """The model as it is without adapters, for as long as its own weights are loaded.

    So their names are those of the files, and random values are drawn as for the model alone. Layers that
    were put in their places meanwhile come under the adapters.
    """
    layers = list(adapted_layers(model))
    for path, layer in layers:
        set_module(model, path, layer.base_layer)
    try:
        yield
    finally:
        for path, layer in layers:
            layer.base_layer = model.get_submodule(path)
            set_module(model, path, layer)


def give_factors(model: torch.nn.Module, device: torch.device) -> None:
    """Give the factors their memory and peft's first values: the second of each pair is 0."""
    for _, layer in adapted_layers(model):
        for table in (layer.lora_A, layer.lora_B):
            for part in table.values():
                part.weight = empty_like_on(part.weight, device)
        for name in layer.lora_A:
            layer.reset_lora_parameters(name, True)


def _matrices(model: torch.nn.Module) -> list[tuple[str, Any, torch.nn.Module]]:
    """The path, role and layer of each matrix that can have an adapter; a tied head is the embedding."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    tied = head is not None and head.weight is embedding.weight
    quantized = {path for path, layer in quantized_layers(model) if hasattr(layer, "in_features")}
    return [
        (path, "head" if module is head else "linear", module)
        for path, module in model.named_modules()
        if (path in quantized or isinstance(module, torch.nn.Linear) or _is_conv1d(module))
        and not (module is head and tied)
    ]


def _ends(chosen: set[str], model: torch.nn.Module) -> list[str]:
    """The last parts of the paths, where they name these modules and no others; else the paths."""
    ends = sorted({path.rpartition(".")[2] for path in chosen})
    named = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in ends}
    return ends if named == chosen else sorted(chosen)


def _peft_layers(model: torch.nn.Module) -> Mapping[type, type]:
    """Which of peft's layers goes over which of our quantized ones.

    bitsandbytes' have peft's own over them, those that models of transformers' loading get.
    """
    lora = peft().tuners.lora
    found: dict[type, type] = {}
    for _, layer in quantized_layers(model):
        if layer.method.backend != "bitsandbytes":
            found[type(layer)] = lora.Linear
        else:
            eight = layer.method.scheme == "int8"
            found[type(layer)] = lora.Linear8bitLt if eight else lora.Linear4bit
    return found


def _is_conv1d(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
