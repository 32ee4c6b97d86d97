"""The inner buffers of attention's CUDA kernels: bytes of those that are there together, in order.

The sources are those of ATen/native/transformers/cuda in torch 2.11 to 2.13, which agree here, and what cuDNN
9.19 plans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.cutlass_backward import BackwardKernel, backward_kernel, workspace_bytes

_FP32 = 4
_RNG_STATE = 16
_CUDNN_ALIGNMENT = 128
_CUDNN_SCRATCH = 256
_CUDNN_MOST_SPLITS = 64


class Shape(NamedTuple):
    """One call: ``size`` is of a head of queries and keys, ``item`` the bytes of an element."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    size: int
    value_size: int
    item: int

    @property
    def output_bytes(self) -> int:
        """Bytes of the output, and of its gradient."""
        return self.batch * self.heads * self.queries * self.value_size * self.item


def flash_forward(gpu: Gpu, shape: Shape, *, dropout: bool) -> Sequence[int]:
    """Where few queries leave multiprocessors idle, keys are split: logsumexp and output in fp32 for each.

    With dropout keys are not split, but the state of the random generator is made twice. Source: ``mha_fwd``
    and ``set_params_splitkv`` in flash_attn/flash_api.cpp.
    """
    if dropout:
        return [_RNG_STATE]
    heads, length = shape.heads, shape.queries
    if length == 1 and heads > shape.key_heads:  # queries that share a key take the place of the length
        heads, length = shape.key_heads, heads // shape.key_heads
    splits = _flash_splits(gpu, shape.batch * heads * -(-length // 64), shape.keys, shape.size)
    rows = splits * shape.batch * heads * length
    return [] if splits == 1 else [rows * _FP32, rows * _flash_head_size(shape.size) * _FP32]


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


def flash_backward(shape: Shape, *, copies: int) -> Sequence[int]:
    """Row sums and the query's gradient in fp32; gradients of shared keys and values for each query head.

    Lengths are rounded up to 128. Gradient and output are copied (``copies`` of them) where they do not lie
    as ``[batch, length, heads, size]``. Source: ``_flash_attention_backward`` in attention_backward.cu and
    ``mha_bwd`` in flash_attn/flash_api.cpp.
    """
    rows = shape.batch * shape.heads * _rounded(shape.queries, 128)
    for_each_head = shape.batch * shape.heads * shape.keys * shape.size * shape.item
    shared = [for_each_head] * 2 if shape.key_heads != shape.heads else []
    sums = [rows * _FP32, rows * _flash_head_size(shape.size) * _FP32]
    return [*[shape.output_bytes] * copies, *sums, *shared]


def _flash_head_size(size: int) -> int:
    """Source: ``head_size_rounded`` in flash_attn/flash_api.cpp."""
    return _rounded(size, 32) if size <= 192 else 256


def efficient_forward(shape: Shape) -> Sequence[int]:
    """The output in fp32, where it is in reduced precision and too wide to stay in registers.

    Source: ``kNeedsOutputAccumulatorBuffer`` in mem_eff_attention/kernel_forward.h; the widest kernel that
    keeps the output in registers is for heads of 128.
    """
    wide = max(shape.size, shape.value_size) > 128
    return [shape.output_bytes // shape.item * _FP32] if wide and shape.item < _FP32 else []


def efficient_backward(gpu: Gpu, shape: Shape, *, copies: int, deterministic: bool = False) -> Sequence[int]:
    """Row sums of gradient times output, and the kernel's workspace or what went into the sums.

    The gradient is copied first (``copies``: 1) where it does not lie as ``[batch, length, heads, size]``.
    Source: ``_efficient_attention_backward`` in attention_backward.cu.
    """
    widest = max(shape.size, shape.value_size)
    kernel = backward_kernel(gpu, half=shape.item < _FP32, head_size=widest)
    blocks = shape.batch * shape.heads
    workspace = workspace_bytes(
        kernel,
        blocks,
        shape.queries,
        shape.keys,
        shape.size,
        shape.value_size,
        deterministic=deterministic,
    )
    running = [blocks * shape.queries * _FP32, workspace]
    return [*[shape.output_bytes] * copies, *max(running, _summing_rows(kernel, shape), key=sum)]


def _summing_rows(kernel: BackwardKernel, shape: Shape) -> list[int]:
    """``(gradient.to(float) * output.to(float)).sum(-1).transpose(-2, -1).contiguous()``, where run."""
    if kernel.sums_rows:
        return []
    product = shape.output_bytes // shape.item * _FP32
    casts = [product] * 2 if shape.item != _FP32 else []
    copies = 2 if shape.heads > 1 and shape.queries > 1 else 1
    return [*casts, product, *[product // shape.value_size] * copies]


def cudnn_forward(gpu: Gpu, shape: Shape) -> Sequence[int]:
    """What cuDNN 9.19 asks for on Hopper: 256 bytes; for a single query, parts of the output over split keys.

    Source: cuDNN's own plans; ``run_cudnn_SDP_fprop`` in ATen/native/cudnn/MHA.cpp allocates what they ask.
    """
    if shape.queries > 1:
        return [_CUDNN_SCRATCH]
    splits = _cudnn_splits(gpu, shape.batch * shape.key_heads, shape.keys)
    rows = splits * shape.batch * shape.heads * _FP32
    parts = rows * shape.size + 2 * _rounded(rows, _CUDNN_ALIGNMENT) + _CUDNN_ALIGNMENT
    return [] if splits == 1 else [parts]


def _cudnn_splits(gpu: Gpu, blocks: int, keys: int) -> int:
    """A power of two with less than two blocks a multiprocessor; none where half of them are busy anyway."""
    if keys <= 512 or 2 * blocks > gpu.multiprocessors:
        return 1
    most = min(_CUDNN_MOST_SPLITS, keys // 128, (2 * gpu.multiprocessors - 1) // blocks)
    return 1 << (most.bit_length() - 1)


def cudnn_backward(shape: Shape) -> Sequence[int]:
    """One workspace: row sums and the query's gradient in fp32; shared gradients once for each query head.

    Source: the plans of cuDNN 9.19 for Hopper, through ``run_cudnn_SDP_bprop`` in ATen/native/cudnn/MHA.cpp.
    """
    blocks = shape.batch * shape.heads
    workspace = blocks * shape.queries * (shape.size + 1) * _FP32 + _CUDNN_SCRATCH
    if shape.key_heads != shape.heads:
        workspace += blocks * shape.keys * (shape.size + shape.value_size) * shape.item
    return [workspace]


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
