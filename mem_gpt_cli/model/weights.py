"""Real weights for a model that has its memory already: safetensors, GGUF, or whatever transformers reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.model.safetensors_file import read_header, read_tensors
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.recipe.schema import Recipe

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def wants_real_weights(source: ModelSource, recipe: Recipe) -> bool:
    """Whether the recipe asks for the weights that lie beside the model's config."""
    return recipe.model.weights == "auto" and source.weights_are_local


@torch.no_grad()
def load_weights(model: torch.nn.Module, source: ModelSource) -> None:
    """Copy the stored weights into the model's own tensors, converting their dtype on the way.

    The model keeps the memory that it has: a memory-mapped file is read, never held. Where the names in the
    file are those of the model, no further tensor is made; else transformers' loader translates them, and
    its tensors live until they are copied.

    Raises:
        EnvironmentUnavailableError: for a file that does not hold this model's weights.
    """
    own = _own_tensors(model)
    if source.gguf_file is not None:
        _copy(own, _from_gguf(source.gguf_file, model), source.where)
        return
    assert source.folder is not None, "weights_are_local without a folder"
    names = _names_in(source.folder)
    if names and set(_canonical(own)) <= set(names):
        _copy(own, _from_safetensors(names), source.where)
    else:
        _copy(own, _from_transformers(source.folder, model), source.where)


def _own_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by every name that they have; tied ones under several names."""
    return dict(model.state_dict(keep_vars=True))


def _canonical(own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One name a tensor: a checkpoint holds tied weights once, under the first of their names."""
    seen: dict[int, str] = {}
    for name, tensor in own.items():
        seen.setdefault(id(tensor), name)
    return {name: own[name] for name in seen.values()}


def _copy(own: Mapping[str, torch.Tensor], stored: Iterator[tuple[str, torch.Tensor]], where: str) -> None:
    filled: set[int] = set()
    for name, tensor in stored:
        target = own.get(name)
        if target is None:
            continue
        if target.shape != tensor.shape:
            raise EnvironmentUnavailableError(
                f"{where}: the stored weight {name!r} has the shape {tuple(tensor.shape)}, the config asks "
                f"for {tuple(target.shape)}: use model.weights=random, or the config the weights belong to"
            )
        target.copy_(tensor)
        filled.add(id(target))
    missing = [name for name, tensor in own.items() if id(tensor) not in filled]
    if missing:
        raise EnvironmentUnavailableError(
            f"{where}: the weights do not hold {missing[0]!r} ({len(missing)} such tensors): "
            "fetch the whole model, or use model.weights=random"
        )


def _names_in(folder: Path) -> dict[str, Path]:
    """The tensors of a folder's safetensors files, each with its file; empty where there are none."""
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text())
        return {name: folder / file for name, file in index["weight_map"].items()}
    files = [folder / _SINGLE] if (folder / _SINGLE).is_file() else []
    return {name: file for file in files for name in read_header(file)}


def _from_safetensors(names: Mapping[str, Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each stored tensor for as long as it takes to copy it."""
    for path in sorted(set(names.values())):
        yield from read_tensors(path)


def _from_gguf(path: Path, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of a GGUF file, unpacked to fp32 by transformers, in memory of numpy, not of torch."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with _without_progress_bars():
        tensors: dict[str, torch.Tensor] = load_gguf_checkpoint(
            str(path), return_tensors=True, model_to_load=model
        )["tensors"]
    while tensors:
        yield tensors.popitem()


def _from_transformers(folder: Path, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor as transformers' own loader reads a folder, for names that it has to translate."""
    with _without_progress_bars():
        try:
            donor, found = type(model).from_pretrained(  # type: ignore[attr-defined]
                str(folder),
                config=model.config,
                dtype=model.dtype,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise EnvironmentUnavailableError(
                f"the weights in {folder} cannot be read ({str(error).splitlines()[0]}): "
                "fetch the model again, or use model.weights=random"
            ) from error
    lacking = found["missing_keys"]  # the loader fills these with random numbers, and only logs it
    for name, tensor in donor.state_dict().items():
        if name not in lacking:
            yield name, tensor


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws bars on stderr, where the command line shows its own progress."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    def plain(items: Any, **_: Any) -> Any:
        return items

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with mock.patch.object(modeling_gguf_pytorch_utils, "tqdm", plain):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
