"""The real transformers model of a config, without memory: what an ``Architecture`` is compared with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from mem_gpt_cli.model import Architecture, catalogue, read_architecture

Shapes = Counter[tuple[str, tuple[int, ...]]]


def real_model(config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build the model on torch's meta device, its weights tied as loading ties them."""
    real = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(real, dtype=dtype)
    model.tie_weights()
    return model


def with_stars(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", name)


def real_shapes(model: nn.Module) -> Shapes:
    return Counter((with_stars(name), tuple(p.shape)) for name, p in model.named_parameters())


def own_shapes(architecture: Architecture) -> Shapes:
    shapes: Shapes = Counter()
    for tensor in architecture.tensors:
        if tensor.kind != "buffer":
            shapes[tensor.name, tensor.shape] += tensor.count
    return shapes


def real_linear_names(model: nn.Module) -> set[str]:
    """Matrices of linear layers, and of experts, which are parameters of three dimensions."""
    names = {
        f"{with_stars(name + '.')}weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    names |= {with_stars(name) for name, p in model.named_parameters() if p.dim() == 3}
    return names & {with_stars(name) for name, _ in model.named_parameters()}


def real_bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def own_bytes(architecture: Architecture, dtype_bytes: int, *, buffers: bool) -> int:
    return sum(
        t.numel * t.count * (t.dtype_bytes or dtype_bytes)
        for t in architecture.tensors
        if (t.kind == "buffer") is buffers
    )


def assert_same(config: Mapping[str, Any]) -> None:
    """The architecture read from a config is that of the real model: names, shapes, kinds, bytes, windows."""
    architecture = read_architecture(config, "the test's config")
    for dtype in (torch.bfloat16, torch.float32):
        model = real_model(config, dtype)
        assert own_bytes(architecture, dtype.itemsize, buffers=True) == real_bytes(model.buffers())
        assert own_bytes(architecture, dtype.itemsize, buffers=False) == real_bytes(model.parameters())
    assert own_shapes(architecture) == real_shapes(model)
    assert architecture.parameters == sum(p.numel() for p in model.parameters())
    assert {t.name for t in architecture.tensors if t.kind == "linear"} == real_linear_names(model)
    cache = DynamicCache(config=model.config)
    assert [layer.attention.window or layer.attention.chunk for layer in architecture.layers] == [
        getattr(layer, "sliding_window", None) for layer in cache.layers
    ]


def main() -> None:
    """Compare the whole catalogue at full depth: `python tests/real_models.py`."""
    for entry in catalogue():
        assert_same(entry.config)
        print(f"{entry.name}: the same", flush=True)


if __name__ == "__main__":
    main()
