"""Which attention kernel runs, and what its scores and masks take."""

from __future__ import annotations

from typing import Literal

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.attention import Shape
from mem_gpt_cli.devices.kernels.build import Build, prefers_cudnn

Kernel = Literal["eager", "fused", "math"]
CudaKernel = Literal["flash", "efficient", "cudnn", "math"]

BOOL = 1


def kernel(backend: str, device: str, *, dropout: float, equal_widths: bool) -> Kernel:
    """What ``F.scaled_dot_product_attention`` picks: one fused kernel, or products and a softmax (``math``).

    On CPU the fused kernel takes no dropout and needs keys as wide as values
    (aten/src/ATen/native/transformers/sdp_utils_cpp.cpp). On CUDA flash or the memory-efficient kernel serves
    both; flash takes neither a mask nor fp32, the efficient one takes them, and neither makes the scores
    (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).

    Args:
        backend: the recipe's ``attention.backend``.
        device: ``cpu`` or ``cuda``.
        dropout: probability that is in force (0 in inference).
        equal_widths: whether a value head is as wide as a key head.
    """
    if backend == "eager":
        return "eager"
    if device == "cpu":
        return "fused" if not dropout and equal_widths else "math"
    return "fused"


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


def score_bytes(batch: int, heads: int, queries: int, keys: int, item: int) -> int:
    """Bytes of one score matrix of every head: what eager attention makes, and a fused kernel does not."""
    return batch * heads * queries * keys * item


def mask_bytes(batch: int, queries: int, keys: int, item: int = BOOL) -> int:
    """Bytes of a mask that all heads share, ``[batch, 1, queries, keys]``."""
    return batch * queries * keys * item


def flash_scratch_bytes(threads: int, queries: int, keys: int, width: int) -> int:
    """What the fused CPU kernel takes for itself: for each thread a block of scores in fp32, its rows' maxima
    and sums, and a block of the output (ATen/native/cpu/FlashAttentionKernel.cpp, ``cpu_flash_attention``).
    """
    rows = min(queries, 256 if queries >= 768 else 64 if queries >= 192 else 32)
    return threads * 4 * (rows * min(512, keys) + 2 * rows + rows * width)


def needs_mask(backend: str, queries: int, keys: int, window: int | None) -> bool:
    """Whether transformers makes a mask for this layer (``masking_utils._ignore_causal_mask_sdpa``).

    Eager attention always gets one. For sdpa the causal flag stands in for it, unless a window cuts keys off.
    """
    if backend == "eager":
        return True
    if window is not None and keys >= window:
        return True
    return queries not in (1, keys)


def score_flops(batch: int, heads: int, queries: int, keys: int, key_dim: int, value_dim: int) -> int:
    """Floating-point operations of scores and weighted values, two a multiply-add, all pairs counted."""
    return 2 * batch * heads * queries * keys * (key_dim + value_dim)
