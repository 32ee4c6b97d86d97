"""Whether an adapter belongs to a model: by what memgpt noted of its base, and by names and shapes.

What memgpt saves notes the base's numbers and, where its weights were real, some of them. Of an adapter that
others saved, the modules that it adapts and the shapes of its factors are all there is to compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mem_gpt_cli.adapters.cost import matrices
from mem_gpt_cli.adapters.folder import SavedAdapter, read_adapter
from mem_gpt_cli.errors import UnsupportedError, UsageError
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    import torch

_TENSORS = 12
_VALUES = 8
"""Weights that are noted: of so many tensors so many values."""
_ROUNDING = 2.0**-7
"""How far apart, relatively, one weight may be in two widths: bf16 keeps 8 bits."""

Shapes = Mapping[str, tuple[int, int]]
"""Outputs and inputs of each matrix that can have an adapter, by its module's path."""


def numbers_of(source: ModelSource) -> Mapping[str, Any]:
    """What tells one architecture from another; of a family without numbers only its type."""
    try:
        architecture = source.architecture
    except UnsupportedError:
        return {"model_type": source.config.get("model_type")}
    first = architecture.layers[0]
    return {
        "model_type": architecture.model_type,
        "layers": len(architecture.layers),
        "hidden": architecture.hidden,
        "heads": first.attention.heads,
        "kv_heads": first.attention.kv_heads,
        "intermediate": first.mlp.intermediate,
        "vocab": architecture.vocab,
        "parameters": architecture.parameters,
    }


def adapters_to_load(recipe: Recipe, source: ModelSource) -> list[SavedAdapter]:
    """The saved adapters that a recipe names, read and checked; imports no torch.

    Raises:
        UsageError: for a folder without an adapter, or one that does not belong to this model.
    """
    adapters = [read_adapter(folder) for folder in recipe.adapters.load]
    for adapter in adapters:
        check_base(adapter, source)
    return adapters


def check_base(adapter: SavedAdapter, source: ModelSource) -> None:
    """Pass an adapter whose base is a model of these numbers, names and shapes; imports no torch.

    Raises:
        UsageError: for an adapter of another model.
    """
    noted = adapter.record.base.architecture if adapter.record else {}
    for key, own in numbers_of(source).items():
        if key in noted and noted[key] != own:
            raise UsageError(
                f"{adapter.folder} was trained on {adapter.base} with {key} {noted[key]}, and "
                f"{source.name} has {own}: name its base, or another adapter"
            )
    try:
        architecture = source.architecture
    except UnsupportedError:
        return  # the modules themselves are asked when they are there
    check_shapes(adapter, shapes_of(architecture), source.name)


def over_other_weights(adapters: Iterable[SavedAdapter], recipe: Recipe) -> Iterator[str]:
    """Which adapters were trained over weights that were stored otherwise than here; a sentence for each way.

    Of an adapter without memgpt's note nobody knows.
    """
    here = recipe.quantization.scheme
    others: dict[str, list[str]] = {}
    for adapter in adapters:
        if adapter.record and adapter.record.scheme != here:
            others.setdefault(adapter.record.scheme, []).append(str(adapter.folder))
    for scheme, folders in sorted(others.items()):
        yield (
            f"trained over weights in {stored(scheme)}, and here over weights in {stored(here)}: "
            f"{', '.join(folders)}"
        )


def stored(scheme: str) -> str:
    """What a reader calls weights of a ``quantization.scheme``."""
    return "full" if scheme == "none" else scheme


def shapes_of(architecture: Architecture) -> Shapes:
    """The matrices that can have an adapter."""
    return {one.module: (one.rows, one.columns) for one in matrices(architecture)}


def check_shapes(adapter: SavedAdapter, shapes: Shapes, name: str) -> None:
    """Pass an adapter whose every factor finds its matrix.

    Raises:
        UsageError: for a module that the model has not, or one of another shape.
    """
    missing = [one.module for one in adapter.factors if one.module not in shapes]
    if missing:
        raise UsageError(
            f"{adapter.folder} adapts {missing[0]}, and {name} has no such matrix ({len(missing)} of "
            f"{len(adapter.factors)} are missing): name the model that it was trained on"
            f"{f', {adapter.base}' if adapter.base else ''}"
        )
    for one in adapter.factors:
        if (one.outputs, one.inputs) != shapes[one.module]:
            rows, columns = shapes[one.module]
            raise UsageError(
                f"{adapter.folder} adapts a matrix of {one.outputs} outputs and {one.inputs} inputs at "
                f"{one.module}, which in {name} has {rows} and {columns}: name the model that it was trained "
                f"on{f', {adapter.base}' if adapter.base else ''}"
            )


def weights_of(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Some of the base's weights: of up to 12 tensors that are stored in full, 8 values each.

    They are values and not their digest, so that the same weights in another width are known again.
    """
    own = list(_in_full(model))
    chosen = own[:: max(1, -(-len(own) // _TENSORS))]
    return [
        {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "values": _some_values(tensor)}
        for name, tensor in chosen
    ]


def check_weights(adapter: SavedAdapter, model: torch.nn.Module, name: str) -> None:
    """Pass an adapter whose base had these weights, as far as it was noted and they are in full here.

    Args:
        adapter: the adapter.
        model: the base with its real weights; adapters may be on it.
        name: what the user calls it.

    Raises:
        UsageError: for other weights.
    """
    noted = adapter.record.base.weights if adapter.record else None
    own = dict(_in_full(model))
    for one in noted or ():
        tensor = own.get(one.name)
        if tensor is None:
            continue
        same_width = str(tensor.dtype) == f"torch.{one.dtype}"
        if not _alike(one.values, _some_values(tensor), 0.0 if same_width else _ROUNDING):
            raise UsageError(
                f"{adapter.folder} was trained on other weights than those of {name}: "
                f"{one.name} differs from what it noted of {adapter.base}; name that model"
            )


def _in_full(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's own tensors that are not quantized, by their names without adapters; tied ones once."""
    from mem_gpt_cli.quantization.modules import quantized_layers

    packed = tuple(f"{path}." for path, _ in quantized_layers(model))
    for name, parameter in model.named_parameters():
        if name.startswith(packed) or ".lora_" in name or parameter.numel() < _VALUES:
            continue
        yield name.replace(".base_layer.", "."), parameter.detach()


def _some_values(tensor: torch.Tensor) -> list[float]:
    """Values at even steps, from the first to the last."""
    flat = tensor.reshape(-1)
    places = [number * (len(flat) - 1) // (_VALUES - 1) for number in range(_VALUES)]
    return [float(value) for value in flat[places].float().tolist()]


def _alike(noted: Sequence[float], own: Sequence[float], rounding: float) -> bool:
    return len(noted) == len(own) and all(
        abs(a - b) <= rounding * max(abs(a), abs(b)) for a, b in zip(noted, own, strict=True)
    )
