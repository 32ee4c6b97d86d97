"""Which attention kernel runs on a GPU, by sizes alone, without torch."""

from __future__ import annotations

from typing import Literal

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.attention import Shape
from mem_gpt_cli.devices.kernels.build import Build, prefers_cudnn

CudaKernel = Literal["flash", "efficient", "cudnn", "math"]


def cuda_kernel(
    gpu: Gpu, build: Build, shape: Shape, dtype: str, *, masked: bool, dropout: float, needs_grad: bool
) -> CudaKernel:
    """What ``F.scaled_dot_product_attention`` runs on a GPU, of what a decoder asks it for.

    The conditions that hang on a decoder's options and sizes, in the order of ``priority_order``; all of them
    are in ``sdp_utils.cpp`` (aten/src/ATen/native/transformers/cuda).

    Args:
        gpu, build: what runs, and what its torch was built with.
        shape: the call's sizes; keys are shared where it has fewer key heads.
        dtype: ``fp32``, ``fp16`` or ``bf16``.
        masked: whether a mask is given; without one several queries are causal.
        dropout: probability that is in force.
        needs_grad: whether gradients are wanted.
    """
    if dtype != "fp32" and prefers_cudnn(gpu, build) and _cudnn_takes(gpu, build, shape, dropout):
        return "cudnn"
    if dtype != "fp32" and not masked and _flash_takes(gpu, shape, dropout, needs_grad=needs_grad):
        return "flash"
    if shape.heads == shape.key_heads or build.efficient_shares_keys:
        modern = gpu.capability >= (8, 0)
        step = (4 if modern else 1) if dtype == "fp32" else 8
        known = modern or dtype != "bf16"
        if known and shape.size % step == 0 and shape.value_size % step == 0:
            return "efficient"
    return "math"


def _cudnn_takes(gpu: Gpu, build: Build, shape: Shape, dropout: float) -> bool:
    """``check_cudnn_tensor_shapes`` and ``check_cudnn_dropout``."""
    widest = 256 if gpu.capability == (9, 0) else 128
    if gpu.capability[0] == 10 and (shape.size, shape.value_size) == (192, 128):
        widest = 192
    return (
        max(shape.size, shape.value_size) <= widest
        and shape.size % 8 == 0
        and shape.value_size % 8 == 0
        and shape.keys != 1
        and not (dropout and shape.queries == 1)
        and not (build.cudnn_dropout_in_sixteenths and dropout * 16 % 1)
    )


def _flash_takes(gpu: Gpu, shape: Shape, dropout: float, *, needs_grad: bool) -> bool:
    """``can_use_flash_attention``; 8.6, 8.9 and 12.x lack the shared memory for wide heads' backward."""
    small = gpu.capability in ((8, 6), (8, 9)) or gpu.capability[0] == 12
    fits = not (small and needs_grad) or shape.size <= 192 or (shape.size > 224 and not dropout)
    return (
        gpu.capability >= (8, 0)
        and shape.size == shape.value_size <= 256
        and fits
        and shape.queries in (1, shape.keys)
    )
