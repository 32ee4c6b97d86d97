"""A folder that was saved quantized says so itself; imports torch to write one alone."""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import TYPE_CHECKING

from mem_gpt_cli.errors import RecipeError, UsageError
from mem_gpt_cli.model.source import QUANTIZATION_KEY, ModelSource
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.changing import changed
from mem_gpt_cli.recipe.methods import method
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Quantization, Recipe

if TYPE_CHECKING:
    import torch

_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""The widths of what is not quantized, as transformers writes them."""


def as_saved(recipe: Recipe, source: ModelSource) -> Recipe:
    """The recipe with the quantization that the model's weights have already; mostly the recipe as it is.

    Random weights are quantized as the folder's are, unless the recipe has a quantization of its own.

    Raises:
        RecipeError: where the recipe asks for another quantization, or for what packed weights cannot do.
    """
    saved = source.saved_quantization
    if saved is None:
        return recipe
    section = Quantization.model_validate(saved)
    drawn = recipe.model.weights == "random"
    if _quantizes(recipe) and not _same(recipe.quantization, section):
        if drawn:
            return recipe
        raise RecipeError(
            f"quantization: the weights of {source.name} were saved as {section.scheme}, and what is lost "
            "does not come back: leave the section out, or name the folder that they were made of",
            position_of(("quantization",), recipe.text),
        )
    if recipe.attention.kv_heads is not None and not drawn:
        raise RecipeError(
            f"attention.kv_heads: the weights of {source.name} were saved quantized, and codes have no mean: "
            "leave it out, or name the folder that they were made of",
            position_of(("attention", "kv_heads"), recipe.text),
        )
    if recipe.task == "training" and recipe.adapters.kind != "qlora":
        raise RecipeError(
            f"task: the weights of {source.name} were saved quantized, and those cannot be trained: write "
            "adapters.kind: qlora, or task: inference, or name the folder that they were made of",
            position_of(("task",), recipe.text),
        )
    found = changed(recipe, {"quantization": dict(saved)})
    refuse_unavailable(found, "profile")
    return found


def _quantizes(recipe: Recipe) -> bool:
    """Whether the recipe says how weights are stored; the nf4 that qlora takes by itself does not count."""
    section = recipe.quantization
    taken = recipe.adapters.kind == "qlora" and not section.model_fields_set
    return section != Quantization() and not taken


def _same(one: Quantization, other: Quantization) -> bool:
    """Whether both store every matrix alike, whatever either leaves to the defaults."""
    methods = (
        [(None, method(section)), *((name, method(section, of)) for name, of in section.overrides.items())]
        for section in (one, other)
    )
    return bool(operator.eq(*methods))


def is_packed(recipe: Recipe, source: ModelSource) -> bool:
    """Whether weights are read as a folder has them quantized; ``recipe`` is that of ``as_saved``."""
    saved = source.saved_quantization
    if saved is None or recipe.model.weights == "random":
        return False
    return _same(recipe.quantization, Quantization.model_validate(saved))


def save_quantized(model: torch.nn.Module, folder: Path, source: ModelSource, recipe: Recipe) -> None:
    """Write a quantized model so that its folder, as ``model.name``, is that model again, to the bit.

    ``config.json`` is the model's own with the recipe's section under ``memgpt_quantization``;
    ``model.safetensors`` holds each stored tensor of a quantized layer as ``<path>.<part>``, see
    ``QuantizedLayer.parts``, and every other tensor under its own name.

    Args:
        model: a model that was built by ``recipe``.
        folder: where to; it is made, and must not hold a model yet.
        source: the model that ``recipe`` names.
        recipe: how the model was built.

    Raises:
        UsageError: where the folder cannot be written or holds a model.
    """
    from safetensors.torch import save_file

    section = recipe.quantization.model_dump(exclude_unset=True)
    if (folder / _CONFIG).exists():
        raise UsageError(f"{folder} holds a model already: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(model), folder / _WEIGHTS, metadata={"format": "pt"})
        config = {**source.config, **({QUANTIZATION_KEY: section} if section else {})}
        config.pop("torch_dtype", None)
        config["dtype"] = _DTYPES[recipe.model.dtype]
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from error


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every stored tensor by its name, shared ones once."""
    from mem_gpt_cli.quantization.modules import quantized_layers

    layers = dict(quantized_layers(model))
    found = {f"{path}.{name}": part for path, layer in layers.items() for name, part in layer.parts().items()}
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        if path not in layers or own == "bias":
            found[name] = parameter.detach()
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if path not in layers and name not in module._non_persistent_buffers_set:
                found[f"{path}.{name}".lstrip(".")] = buffer
    once: dict[tuple[int, int], str] = {}
    for name, tensor in found.items():
        once.setdefault((tensor.data_ptr(), tensor.numel()), name)
    return {name: found[name].contiguous() for name in once.values()}
