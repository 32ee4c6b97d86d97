"""What attention's CUDA kernels allocate and free inside one operator, where no tensor shows it.

Each rule reads the sizes off an operator's arguments; ``devices.kernels.attention`` says what they take,
after ATen/native/transformers/cuda and ATen/native/cudnn.
"""
# ruff: noqa: ARG001 - all rules have one signature, and few need all of it

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels import attention
from mem_gpt_cli.devices.kernels.attention import Shape

aten = torch.ops.aten
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


def flash_forward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """Few queries over many keys, or dropout's state: see ``attention.flash_forward``."""
    dropout = _argument(args, kwargs, 3, "dropout_p", 0.0) > 0
    return attention.flash_forward(gpu, _shape(*args[:3]), dropout=dropout)


def flash_backward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """The query's gradient in fp32 and more: see ``attention.flash_backward``."""
    gradient, output = args[0], args[4]
    copies = sum(not _lies_by_length(tensor) for tensor in (gradient, output))
    return attention.flash_backward(_shape(*args[1:4]), copies=copies)


def efficient_forward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """Wide heads' output in fp32: see ``attention.efficient_forward``."""
    return attention.efficient_forward(_shape(*args[:3]))


def efficient_backward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """Row sums and the kernel's workspace: see ``attention.efficient_backward``."""
    return attention.efficient_backward(
        gpu,
        _shape(*args[1:4]),
        copies=int(not _lies_by_length(args[0])),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def cudnn_forward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """Parts of a single query's output: see ``attention.cudnn_forward``."""
    return attention.cudnn_forward(gpu, _shape(*args[:3]))


def cudnn_backward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """One workspace: see ``attention.cudnn_backward``."""
    return attention.cudnn_backward(_shape(*args[1:4]))


RULES: dict[Any, Callable[[Gpu, Args, Kwargs, Any], Sequence[int]]] = {
    aten._scaled_dot_product_flash_attention.default: flash_forward,
    aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
    aten._scaled_dot_product_efficient_attention.default: efficient_forward,
    aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
    aten._scaled_dot_product_cudnn_attention.default: cudnn_forward,
    aten._scaled_dot_product_cudnn_attention_backward.default: cudnn_backward,
}


def _shape(query: Tensor, key: Tensor, value: Tensor) -> Shape:
    batch, heads, queries, size = query.shape
    return Shape(
        batch, heads, key.shape[1], queries, key.shape[2], size, value.shape[3], query.element_size()
    )


def _argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _lies_by_length(tensor: Tensor) -> bool:
    return tensor.transpose(1, 2).is_contiguous()
