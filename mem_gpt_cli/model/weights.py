"""Real weights for a model: safetensors, GGUF, or whatever transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.model.gguf_weights import Read, gguf_tensors
from mem_gpt_cli.model.safetensors_file import read_header, read_tensors
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.recipe.schema import Recipe

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def wants_real_weights(source: ModelSource, recipe: Recipe) -> bool:
    """Whether the recipe asks for the weights that lie beside the model's config."""
    return recipe.model.weights == "auto" and source.weights_are_local


Convert = Callable[[str, torch.Tensor], Iterable[tuple[str, torch.Tensor]]]
"""One stored tensor by its name to those that the model has instead."""


class StoredWeights:
    """The weights beside a model's config, by the names that the model has for them.

    A memory-mapped file is read, never held, and GGUF is unpacked one tensor at a time. Where the names in
    the file are those of the model, no further tensor is made; else transformers' loader translates them, and
    its tensors live until they are taken.

    Args:
        model: the model whose names count, before anything in it is replaced.
        source: where the weights are.
        convert: what to do with each tensor on its way into the model; ``None``: nothing.

    Raises:
        EnvironmentUnavailableError: for a file that cannot be read.
    """

    def __init__(self, model: torch.nn.Module, source: ModelSource, convert: Convert | None = None) -> None:
        self.where = source.where
        self._convert = convert
        self._stored = dict(_stored(model, source))

    def take(self, target: torch.Tensor, *names: str) -> None:
        """Copy the tensor of the first of the names that is stored into ``target``, in its dtype.

        Raises:
            EnvironmentUnavailableError: where none of them is stored, or in another shape.
        """
        name = next((name for name in names if name in self._stored), None)
        if name is None:
            raise self._lacking([names[0]])
        for _, tensor in self._converted(name):
            self._copy(name, target, tensor)

    @torch.no_grad()
    def fill(self, model: torch.nn.Module) -> None:
        """Copy what is left into the model's own tensors.

        Raises:
            EnvironmentUnavailableError: where a tensor of the model's is not stored, or in another shape.
        """
        own = _own_tensors(model)
        filled: set[int] = set()
        for stored in list(self._stored):
            for name, tensor in self._converted(stored):
                if name in own:
                    self._copy(name, own[name], tensor)
                    filled.add(id(own[name]))
        missing = [name for name, tensor in own.items() if id(tensor) not in filled]
        if missing:
            raise self._lacking(missing)

    def _converted(self, name: str) -> Iterable[tuple[str, torch.Tensor]]:
        tensor = self._stored.pop(name)()
        return [(name, tensor)] if self._convert is None else self._convert(name, tensor)

    def _copy(self, name: str, target: torch.Tensor, tensor: torch.Tensor) -> None:
        if target.shape != tensor.shape:
            raise EnvironmentUnavailableError(
                f"{self.where}: the stored weight {name!r} has the shape {tuple(tensor.shape)}, the config "
                f"asks for {tuple(target.shape)}: use model.weights=random, or the config the weights "
                "belong to"
            )
        with torch.no_grad():
            target.copy_(tensor)

    def _lacking(self, names: Sequence[str]) -> EnvironmentUnavailableError:
        return EnvironmentUnavailableError(
            f"{self.where}: the weights do not hold {names[0]!r} ({len(names)} such tensors): "
            "fetch the whole model, or use model.weights=random"
        )


def _stored(model: torch.nn.Module, source: ModelSource) -> Mapping[str, Read]:
    """How to read each stored tensor, by its name in the model."""
    if source.gguf_file is not None:
        return gguf_tensors(source.gguf_file, model)
    assert source.folder is not None, "weights_are_local without a folder"
    names = _names_in(source.folder)
    if names and (source.saved_quantization or set(_canonical(_own_tensors(model))) <= set(names)):
        tensors = _from_safetensors(names)
    else:
        tensors = _from_transformers(source.folder, model)
    return {name: partial(_itself, tensor) for name, tensor in tensors}


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _own_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by every name that they have; tied ones under several names."""
    return dict(model.state_dict(keep_vars=True))


def _canonical(own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One name a tensor: a checkpoint holds tied weights once, under the first of their names."""
    seen: dict[int, str] = {}
    for name, tensor in own.items():
        seen.setdefault(id(tensor), name)
    return {name: own[name] for name in seen.values()}


def _names_in(folder: Path) -> dict[str, Path]:
    """The tensors of a folder's safetensors files, each with its file; empty where there are none."""
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text())
        return {name: folder / file for name, file in index["weight_map"].items()}
    files = [folder / _SINGLE] if (folder / _SINGLE).is_file() else []
    return {name: file for file in files for name in read_header(file)}


def _from_safetensors(names: Mapping[str, Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each stored tensor, as a view of the mapped file."""
    for path in sorted(set(names.values())):
        yield from read_tensors(path)


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
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
