"""Adapters to and from folders, in peft's own format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mem_gpt_cli._version import __version__
from mem_gpt_cli.adapters.apply import NAME, adapted_layers, inject, linear_layers
from mem_gpt_cli.adapters.base import (
    adapters_to_load,
    check_shapes,
    check_weights,
    numbers_of,
    weights_of,
)
from mem_gpt_cli.adapters.folder import CONFIG, PREFIX, RECORD, WEIGHTS, SavedAdapter, read_adapter
from mem_gpt_cli.adapters.library import peft
from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.model.build import DTYPES, empty_like_on
from mem_gpt_cli.model.safetensors_file import read_tensors
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.model.weights import wants_real_weights
from mem_gpt_cli.recipe.refusals.adapters import quantizes
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.whole_folder import whole_folder


def save_adapters(model: torch.nn.Module, recipe: Recipe, folder: Path, name: str = NAME) -> None:
    """Write one adapter of a model so that peft and ``adapters.load`` read it.

    Args:
        model: a model with adapters, as it stands.
        recipe: how it was built.
        folder: where to; nothing may be there, or an empty folder.
        name: which of its adapters.

    Raises:
        UsageError: where the folder is taken or cannot be written.
    """
    config = model.peft_config[name].to_dict()  # type: ignore[union-attr,index]
    source = source_of(recipe)
    config |= {"inference_mode": True, "base_model_name_or_path": recipe.model.name}
    real = wants_real_weights(source, recipe)
    record = {
        "schema_version": 1,
        "memgpt": __version__,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": {
            "name": source.name,
            "architecture": numbers_of(source),
            "weights": weights_of(model) if real else None,
        },
        "quantization": _stored_as(recipe),
    }
    write_adapter(folder, config, dict(_factors(model, name)), record)


def _stored_as(recipe: Recipe) -> Mapping[str, Any] | None:
    """How the base's weights are stored, with the scheme that ``qlora`` chose where the recipe names none."""
    section = recipe.quantization
    if not quantizes(section):
        return None
    return {**section.model_dump(exclude_unset=True), "scheme": section.scheme}


def write_adapter(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> None:
    """Write a whole folder in peft's format.

    Args:
        folder: where to.
        config: the fields of peft's ``LoraConfig``.
        tensors: the factors by their names in the file.
        record: what memgpt notes beside them; ``None``: nothing.
        dtype: a recipe's name of the width to store them in; ``None``: as they are.

    Raises:
        UsageError: where the folder is taken or cannot be written.
    """
    with whole_folder(folder) as partial:
        write_factors(partial / WEIGHTS, tensors, dtype)
        _write_json(partial / CONFIG, {key: _plain(config[key]) for key in sorted(config)})
        if record is not None:
            _write_json(partial / RECORD, record)


def write_factors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file as peft does."""
    from safetensors.torch import save_file

    width = DTYPES[dtype] if dtype else None
    kept = {name: tensor.to(width or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    save_file(kept, path, metadata={"format": "pt", **(metadata or {})})


def add_saved(model: torch.nn.Module, source: ModelSource, recipe: Recipe) -> None:
    """Put the factors of the adapters that a recipe loads on a model on ``meta``, all in force, frozen.

    Raises:
        UsageError: for a folder without an adapter, or one that does not belong to this model.
    """
    if recipe.adapters.load:
        put_on_meta(model, adapters_to_load(recipe, source), source.name)


def fill_saved(model: torch.nn.Module, source: ModelSource, recipe: Recipe) -> None:
    """Give these factors, which have their memory, the values that were saved.

    Raises:
        UsageError: for an adapter that was trained on other weights than the model's real ones.
    """
    adapters = adapters_to_load(recipe, source)
    if wants_real_weights(source, recipe):
        for adapter in adapters:
            check_weights(adapter, model, source.name)
    fill(model, adapters)


def load_adapters(model: torch.nn.Module, folders: Sequence[str | Path]) -> None:
    """Put saved adapters on a model that has its weights, all in force, frozen: the sum of their products.

    Raises:
        UsageError: for a folder without an adapter, or one that does not fit the model's modules.
    """
    adapters = [read_adapter(folder) for folder in folders]
    put_on_meta(model, adapters, type(model).__name__)
    device = next(model.parameters()).device
    for _, layer in adapted_layers(model):
        for table in (layer.lora_A, layer.lora_B):
            for part in table.values():
                if part.weight.is_meta:
                    part.weight = empty_like_on(part.weight, device)
    fill(model, adapters)


def put_on_meta(model: torch.nn.Module, adapters: Sequence[SavedAdapter], name: str) -> None:
    """Put the factors of saved adapters beside their matrices, on ``meta``, frozen and all in force.

    They are in fp32, as peft loads them, and come after a fresh adapter that is there already. A model with
    fewer layers gets those of its own.

    Args:
        model: the model; its own tensors may be on ``meta`` too.
        adapters: what to put on it.
        name: what the user calls the model.

    Raises:
        UsageError: for an adapter that does not fit its modules.
    """
    layers = dict(linear_layers(model))
    shapes = {path: _shape(layer) for path, layer in layers.items()}
    depth = _depth(model)
    for adapter, own in zip(adapters, names_of(adapters), strict=True):
        modules = [one.module for one in adapter.factors if not _is_beyond(one.module, depth)]
        if len(modules) == len(adapter.factors):
            check_shapes(adapter, shapes, name)
        config = _config(adapter, modules)
        config.fan_in_fan_out = any(type(layers[module]).__name__ == "Conv1D" for module in modules)
        inject(model, config, own)
    _all_in_force(model)


def fill(model: torch.nn.Module, adapters: Sequence[SavedAdapter]) -> None:
    """Copy the stored values into the factors that ``put_on_meta`` made, once they have memory."""
    layers = dict(adapted_layers(model))
    for adapter, own in zip(adapters, names_of(adapters), strict=True):
        for name, tensor in factors_of(adapter):
            module, _, side = name.removesuffix(".weight").rpartition(".")
            table = getattr(layers[module], side)
            with torch.no_grad():
                table[own].weight.copy_(tensor)


def factors_of(adapter: SavedAdapter) -> Iterator[tuple[str, Tensor]]:
    """Each stored factor, a view of the mapped file, as ``<path>.lora_A.weight`` or ``lora_B``."""
    for name, tensor in read_tensors(adapter.folder / WEIGHTS):
        yield name.removeprefix(PREFIX), tensor


def names_of(adapters: Sequence[SavedAdapter]) -> list[str]:
    """What peft calls them on the model: their folders' names, made different and without dots."""
    found: list[str] = []
    for number, adapter in enumerate(adapters, 1):
        name = re.sub(r"\W", "_", adapter.name) or "adapter"
        found.append(name if name not in (*found, NAME) else f"{name}_{number}")
    return found


def _config(adapter: SavedAdapter, modules: list[str]) -> Any:
    """peft's config of factors beside these modules, which are loaded and not trained.

    It takes nothing from the folder's but what scales the products: the file says which modules there are.
    """
    lora = adapter.lora
    return peft().LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        use_rslora=lora.use_rslora,
        rank_pattern=dict(lora.rank_pattern or {}),
        alpha_pattern=dict(lora.alpha_pattern or {}),
        target_modules=modules,
        inference_mode=True,
    )


def _all_in_force(model: torch.nn.Module) -> None:
    """Add up every adapter; only a fresh one is trained."""
    for _, layer in adapted_layers(model):
        layer.set_adapter(list(layer.lora_A))
        for table in (layer.lora_A, layer.lora_B):
            for name, part in table.items():
                part.weight.requires_grad_(name == NAME)


def _factors(model: torch.nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one adapter by their names in the file."""
    for path, layer in adapted_layers(model):
        for side in ("lora_A", "lora_B"):
            if name in getattr(layer, side):
                weight = getattr(layer, side)[name].weight
                yield f"{PREFIX}{path.removeprefix(PREFIX)}.{side}.weight", weight.detach()


def _shape(layer: Any) -> tuple[int, int]:
    """Outputs and inputs."""
    if hasattr(layer, "in_features"):
        return int(layer.out_features), int(layer.in_features)
    inputs, outputs = layer.weight.shape  # Conv1D
    return int(outputs), int(inputs)


def _depth(model: torch.nn.Module) -> int:
    config: Any = model.config
    return int(config.get_text_config().num_hidden_layers)


def _is_beyond(module: str, depth: int) -> bool:
    """Whether a path leads into a layer that a model of fewer layers has not."""
    number = next((int(part) for part in module.split(".") if part.isdecimal()), None)
    return number is not None and number >= depth


def _plain(value: Any) -> Any:
    """Sets as sorted lists, so that the same adapter is the same file."""
    return sorted(value) if isinstance(value, set | frozenset) else value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
