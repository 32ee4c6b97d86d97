"""Which attention kernel runs, and what its scores and masks take."""

from __future__ import annotations

from typing import Literal

Kernel = Literal["eager", "fused", "math"]

NO_FLASH = (
    "attention.backend: torch's flash kernel cannot run this (on CPU it knows no dropout; on CUDA it wants "
    "compute capability 8.0, fp16 or bf16, no mask, and heads up to 256): choose sdpa"
)
"""Why a recipe that allows flash alone is refused."""
FLASH_CAPABILITY = (8, 0)
LSH_NOT_TAKEN = (
    "attention.backend: transformers' code for this model computes its attention itself, so lsh cannot run: "
    "choose eager"
)
"""Why a model whose code takes no registered attention is refused."""
LSH_NO_DROPOUT = (
    "attention.backend: lsh knows no dropout of attention weights: set it to 0 in model.config (attn_pdrop "
    "for GPT-2, attention_dropout for most others), or model.dropout=0, or choose sdpa"
)
"""Why a training that drops attention weights out is refused."""

BOOL = 1


def kernel(backend: str, device: str, *, dropout: float, equal_widths: bool) -> Kernel:
    """What ``F.scaled_dot_product_attention`` picks: one fused kernel, or products and a softmax (``math``).

    On CPU the fused kernel takes no dropout and needs keys as wide as values
    (aten/src/ATen/native/transformers/sdp_utils_cpp.cpp). On CUDA it hangs on much more: ``on_cuda.py``.

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
