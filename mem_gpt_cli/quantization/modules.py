"""From a recipe's plan to a model whose matrices are stored by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.model.build import last_turns
from mem_gpt_cli.model.imports import quiet
from mem_gpt_cli.quantization.layer import QuantizedLayer
from mem_gpt_cli.quantization.plan import Method, Role, plan_of
from mem_gpt_cli.quantization.storable import refuse_unmatched, refuse_unstorable
from mem_gpt_cli.recipe.schema import Recipe

Named = tuple[str, torch.nn.Module]
"""A module with its path."""


def replace_on_meta(model: torch.nn.Module, recipe: Recipe) -> None:
    """Put quantized layers, on ``meta`` as the model is, in the place of those that the recipe names.

    Raises:
        RecipeError: for a pattern that matches no module.
        EnvironmentUnavailableError: for a backend that is not installed.
        UnsupportedError: for a matrix that the backend cannot hold.
    """
    plan = plan_of(recipe)
    if not plan.quantizes:
        return
    matrices = list(_matrices(model))
    turns = last_turns(model)
    names = [(path, role) for holders in matrices for path, _, role in holders]
    config: Any = model.config
    refuse_unmatched(names, plan, recipe, config.model_type)
    for holders in matrices:
        method = plan.shared(*((path, role) for path, _, role in holders))
        if method is not None:
            modules = [(path, module) for path, module, _ in holders]
            _refuse_unstorable(*modules[0], method, recipe.device.type)
            _replace(model, modules, method, turns)


def stored_tensors(model: torch.nn.Module) -> Iterator[Tensor]:
    """Every tensor that holds weights: parameters, buffers, and the scales and tables of quantized layers."""
    yield from model.parameters()
    yield from model.buffers()
    for _, layer in quantized_layers(model):
        yield from layer.parts().values()


def parameter_count(model: torch.nn.Module) -> int:
    """The parameters of a model on ``meta``, tied ones once: as many as before any was quantized."""
    found: dict[int, int] = {}
    for module in model.modules():
        full = (isinstance(module, QuantizedLayer) and module.replaced) or module
        found.update({id(p): p.numel() for p in full.parameters(recurse=False)})
    return sum(found.values())


def quantized_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Each quantized layer with its path; it is a module and a ``QuantizedLayer``."""
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            yield path, module


def full_matrix(layer: torch.nn.Module) -> Tensor:
    """A full layer's matrix as ``[rows, columns]``; ``Conv1D`` stores it transposed."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.t() if _is_conv1d(layer) else weight


def set_module(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    """Put ``module`` where the path leads."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _matrices(model: torch.nn.Module) -> Iterator[list[tuple[str, torch.nn.Module, Role]]]:
    """The modules that hold each matrix: one, or those that are tied."""
    found: dict[int, list[tuple[str, torch.nn.Module, Role]]] = {}
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    for path, module in model.named_modules():
        role: Role
        if module is embedding:
            role = "embedding"
        elif module is head:
            role = "head"
        elif type(module) is torch.nn.Linear or _is_conv1d(module):
            role = "linear"
        else:
            continue
        found.setdefault(id(module.weight), []).append((path, module, role))
    yield from found.values()


def _is_conv1d(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _refuse_unstorable(path: str, module: torch.nn.Module, method: Method, device: str) -> None:
    rows, columns = full_matrix(module).shape
    refuse_unstorable(
        path,
        method,
        rows,
        columns,
        device,
        embedding=isinstance(module, torch.nn.Embedding),
        plain=type(module) is torch.nn.Embedding,
    )


def _replace(
    model: torch.nn.Module, holders: list[Named], method: Method, turns: Mapping[int, torch.nn.Module]
) -> None:
    """One matrix's modules; the first is filled on ``meta``, the others share its tensors."""
    first: Any = None
    for path, module in holders:
        layer = _layer(module, method)
        layer.stand_for(module, turns.get(id(module.weight), module))
        layer.train(module.training)
        if first is None:
            first = layer
            layer.quantize(full_matrix(module).detach())
        else:
            layer.put(first.parts())
        set_module(model, path, layer)


def _layer(module: torch.nn.Module, method: Method) -> Any:
    rows, columns = full_matrix(module).shape
    dtype = module.weight.dtype
    if isinstance(module, torch.nn.Embedding):
        return _native().NativeEmbedding(method, rows, columns, module.padding_idx)
    bias = module.bias
    if method.backend == "native":
        return _native().NativeLinear(method, rows, columns, bias)
    if method.backend == "torchao":
        return _layers("torchao").TorchaoLinear(method, rows, columns, bias, dtype)
    layers = _layers("bitsandbytes")
    kind: Callable[..., Any] = layers.EightBitLinear if method.scheme == "int8" else layers.FourBitLinear
    return kind(method, rows, columns, bias, dtype)


def _native() -> Any:
    """The packed layers need torchao's primitives."""
    return _layers("torchao", "native")


def _layers(package: str, module: str | None = None) -> Any:
    """The layers over a package, imported without the remarks that it makes at import.

    Raises:
        EnvironmentUnavailableError: where the package is not installed, or its import fails.
    """
    try:
        with quiet("bitsandbytes", "torchao"):
            return import_module(f"mem_gpt_cli.quantization.{module or package + '_layers'}")
    except (ImportError, OSError, RuntimeError) as error:  # the latter two by libraries that do not load
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentUnavailableError(
            f"{package} {'is not installed here' if missing else 'cannot be imported here'} ({reason}): "
            f"{'install' if missing else 'install again'} memgpt's extra 'quantization', "
            "or write quantization.scheme: none"
        ) from error
