"""A GGUF file's tensors under transformers' names, unpacked to fp32 one at a time.

Name map and rearrangement are those of transformers' own loader (``modeling_gguf_pytorch_utils``), which
unpacks the whole file at once. It is asked to do so where it makes one tensor of several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from mem_gpt_cli.model.gguf_file import read_gguf_config

Read = Callable[[], torch.Tensor]


def gguf_tensors(path: Path, model: torch.nn.Module) -> Mapping[str, Read]:
    """How to read each tensor of a file, by its name in the model; the memory is numpy's, not torch's."""
    from gguf import GGUFReader
    from transformers import modeling_gguf_pytorch_utils as loader

    reader: Any = GGUFReader(str(path))
    architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    kind = loader.TENSOR_PROCESSORS.get(architecture, loader.TensorProcessor)
    if kind.process not in (loader.TensorProcessor.process, loader.LlamaTensorProcessor.process):
        return _all_at_once(path, model)
    processor = kind(config=read_gguf_config(path))
    names = loader.get_gguf_hf_weights_map(model, processor)
    return {
        names[tensor.name]: partial(_read, tensor, processor)
        for tensor in reader.tensors
        if tensor.name in names
    }


def _read(tensor: Any, processor: Any) -> torch.Tensor:
    from gguf import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    values = processor.process(weights=values, name=tensor.name).weights
    return torch.from_numpy(values.copy())


def _all_at_once(path: Path, model: torch.nn.Module) -> Mapping[str, Read]:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with _without_progress_bars():
        tensors: dict[str, torch.Tensor] = load_gguf_checkpoint(
            str(path), return_tensors=True, model_to_load=model
        )["tensors"]
    return {name: partial(tensors.pop, name) for name in list(tensors)}


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws a bar on stderr, where the command line shows its own progress."""
    from transformers import modeling_gguf_pytorch_utils

    def plain(items: Any, **_: Any) -> Any:
        return items

    with mock.patch.object(modeling_gguf_pytorch_utils, "tqdm", plain):
        yield
