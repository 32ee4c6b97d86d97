"""What attention's CUDA kernels allocate and free inside one operator, where no tensor shows it.

Each rule gives the bytes of the buffers that are there together when the operator needs the most. The sources
are those of ATen/native/transformers/cuda in torch 2.11 to 2.13, which agree here, and what cuDNN 9.19 plans.
"""
# ruff: noqa: ARG001 - all rules have one signature, and few need all of it

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.trace.cuda.cutlass_backward import BackwardKernel, backward_kernel, workspace_bytes

aten = torch.ops.aten
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]

_FP32 = 4
_RNG_STATE = 16
_CUDNN_ALIGNMENT = 128
_CUDNN_SCRATCH = 256
_CUDNN_MOST_SPLITS = 64


def flash_forward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """Where few queries leave multiprocessors idle, keys are split: logsumexp and output in fp32 for each.

    With dropout keys are not split, but the state of the random generator is made twice. Source: ``mha_fwd``
    and ``set_params_splitkv`` in flash_attn/flash_api.cpp.
    """
    query, key = args[0], args[1]
    if _argument(args, kwargs, 3, "dropout_p", 0.0) > 0:
        return [_RNG_STATE]
    batch, heads, length, size = query.shape
    if length == 1 and heads > key.shape[1]:  # the queries that share a key take the place of the length
        heads, length = key.shape[1], heads // key.shape[1]
    splits = _flash_splits(gpu, batch * heads * -(-length // 64), key.shape[2], size)
    rows = splits * batch * heads * length
    return [] if splits == 1 else [rows * _FP32, rows * _flash_head_size(size) * _FP32]


def _flash_splits(gpu: Gpu, blocks: int, keys: int, size: int) -> int:
    """The fewest splits that come within 85% of the best occupancy. Source: ``num_splits_heuristic``."""
    processors = 2 * gpu.multiprocessors
    key_blocks = -(-keys // (256 if size <= 64 else 128 if size <= 128 else 64))
    if blocks >= 0.8 * processors:
        return 1
    occupancy: dict[int, float] = {}
    for splits in range(1, min(128, processors, key_blocks) + 1):
        if splits == 1 or -(-key_blocks // splits) != -(-key_blocks // (splits - 1)):
            waves = blocks * splits / processors
            occupancy[splits] = waves / math.ceil(waves)
    best = max(occupancy.values())
    return next(splits for splits, share in occupancy.items() if share >= 0.85 * best)


def flash_backward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """Row sums and the query's gradient in fp32; gradients of shared keys and values for each query head.

    Lengths are rounded up to 128. The gradient and the output are copied where they do not lie as ``[batch,
    length, heads, size]``. Source: ``_flash_attention_backward`` in attention_backward.cu and ``mha_bwd`` in
    flash_attn/flash_api.cpp.
    """
    gradient, query, key, output = args[0], args[1], args[2], args[4]
    batch, heads, length, size = query.shape
    rows = batch * heads * _rounded(length, 128)
    copies = [_bytes(tensor) for tensor in (gradient, output) if not _lies_by_length(tensor)]
    for_each_head = batch * heads * key.shape[2] * size * key.element_size()
    shared = [for_each_head] * 2 if key.shape[1] != heads else []
    return [*copies, rows * _FP32, rows * _flash_head_size(size) * _FP32, *shared]


def _flash_head_size(size: int) -> int:
    """Source: ``head_size_rounded`` in flash_attn/flash_api.cpp."""
    return _rounded(size, 32) if size <= 192 else 256


def efficient_forward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """The output in fp32, where it is in reduced precision and too wide to stay in registers.

    Source: ``kNeedsOutputAccumulatorBuffer`` in mem_eff_attention/kernel_forward.h; the widest kernel that
    keeps the output in registers is for heads of 128.
    """
    output = result[0]
    wide = max(args[1].shape[-1], args[2].shape[-1]) > 128
    return [output.numel() * _FP32] if wide and output.element_size() < _FP32 else []


def efficient_backward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """Row sums of gradient times output, and the kernel's workspace or what went into the sums.

    The gradient is copied first where it does not lie as ``[batch, length, heads, size]``. Source:
    ``_efficient_attention_backward`` in attention_backward.cu.
    """
    gradient, query, key, value = args[:4]
    kernel = backward_kernel(gpu, query.dtype, max(query.shape[-1], value.shape[-1]))
    copies = [] if _lies_by_length(gradient) else [_bytes(gradient)]
    sums = gradient.numel() // gradient.shape[-1] * _FP32
    running = [sums, workspace_bytes(kernel, query, key, value)]
    return [*copies, *max(running, _summing_rows(kernel, gradient), key=sum)]


def _summing_rows(kernel: BackwardKernel, gradient: Tensor) -> list[int]:
    """``(gradient.to(float) * output.to(float)).sum(-1).transpose(-2, -1).contiguous()``, where run."""
    if kernel.sums_rows:
        return []
    _, heads, length, size = gradient.shape
    product = gradient.numel() * _FP32
    casts = [product] * 2 if gradient.dtype != torch.float32 else []
    copies = 2 if heads > 1 and length > 1 else 1
    return [*casts, product, *[product // size] * copies]


def cudnn_forward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """What cuDNN 9.19 asks for on Hopper: 256 bytes; for a single query, parts of the output over split keys.

    Source: cuDNN's own plans; ``run_cudnn_SDP_fprop`` in ATen/native/cudnn/MHA.cpp allocates what they ask.
    """
    query, key = args[0], args[1]
    batch, heads, length, size = query.shape
    if length > 1:
        return [_CUDNN_SCRATCH]
    splits = _cudnn_splits(gpu, batch * key.shape[1], key.shape[2])
    rows = splits * batch * heads * _FP32
    parts = rows * size + 2 * _rounded(rows, _CUDNN_ALIGNMENT) + _CUDNN_ALIGNMENT
    return [] if splits == 1 else [parts]


def _cudnn_splits(gpu: Gpu, blocks: int, keys: int) -> int:
    """A power of two with less than two blocks a multiprocessor; none where half of them are busy anyway."""
    if keys <= 512 or 2 * blocks > gpu.multiprocessors:
        return 1
    most = min(_CUDNN_MOST_SPLITS, keys // 128, (2 * gpu.multiprocessors - 1) // blocks)
    return 1 << (most.bit_length() - 1)


def cudnn_backward(gpu: Gpu, args: Args, kwargs: Kwargs, result: Any) -> Sequence[int]:
    """One workspace: row sums and the query's gradient in fp32; shared gradients once for each query head.

    Source: the plans of cuDNN 9.19 for Hopper, through ``run_cudnn_SDP_bprop`` in ATen/native/cudnn/MHA.cpp.
    """
    query, key, value = args[1:4]
    batch, heads, length, size = query.shape
    workspace = batch * heads * length * (size + 1) * _FP32 + _CUDNN_SCRATCH
    if key.shape[1] != heads:
        workspace += batch * heads * key.shape[2] * (size + value.shape[3]) * key.element_size()
    return [workspace]


RULES: dict[Any, Callable[[Gpu, Args, Kwargs, Any], Sequence[int]]] = {
    aten._scaled_dot_product_flash_attention.default: flash_forward,
    aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
    aten._scaled_dot_product_efficient_attention.default: efficient_forward,
    aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
    aten._scaled_dot_product_cudnn_attention.default: cudnn_forward,
    aten._scaled_dot_product_cudnn_attention_backward.default: cudnn_backward,
}


def _argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _lies_by_length(tensor: Tensor) -> bool:
    return tensor.transpose(1, 2).is_contiguous()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
