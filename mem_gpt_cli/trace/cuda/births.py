"""Results that a CUDA kernel allocates otherwise than the shape function of the operator says.

The order decides where a block lies, and so, in the end, what is reserved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mem_gpt_cli.ledger.ledger import Birth, Births

aten = torch.ops.aten
FP32 = 4
NOWHERE = 0

Args = tuple[Any, ...]


def mask_first(args: Args, result: Any) -> Iterator[Birth]:  # noqa: ARG001
    """Dropout makes its mask before its output: ``native_dropout_cuda`` in ATen/native/cuda/Dropout.cu."""
    output, mask = result
    yield mask, None
    yield output, None


def statistics_in_fp32(args: Args, result: Any) -> Iterator[Birth]:  # noqa: ARG001
    """Mean and reciprocal deviation are fp32 whatever the input; on the CPU they have the input's dtype.

    Source: ``layer_norm_cuda`` in ATen/native/cuda/layer_norm_kernel.cu.
    """
    output, *statistics = result
    yield output, None
    for tensor in statistics:
        yield tensor, FP32 * tensor.numel()


def seeds_on_the_host(args: Args, result: Any) -> Iterator[Birth]:  # noqa: ARG001
    """The memory-efficient kernel has the seed and offset of its dropout in the host's memory.

    Source: Note [Seed and Offset Device] in ATen/native/transformers/cuda/attention.cu.
    """
    output, logsumexp, seed, offset = result
    yield output, None
    yield logsumexp, None
    yield seed, NOWHERE
    yield offset, NOWHERE


def seeds_first(args: Args, result: Any) -> Iterator[Birth]:
    """cuDNN has them on the device, before its output, and makes no logsumexp where no gradient is wanted.

    Source: ``_scaled_dot_product_cudnn_attention_cuda`` in ATen/native/transformers/cuda/attention.cu,
    ``run_cudnn_SDP_fprop`` in ATen/native/cudnn/MHA.cpp.
    """
    output, logsumexp, seed, offset = (result[index] for index in (0, 1, 6, 7))
    wants_logsumexp = args[4]
    yield seed, None
    yield offset, None
    yield output, None
    yield logsumexp, None if wants_logsumexp else NOWHERE


BIRTHS: dict[Any, Births] = {
    aten.native_dropout.default: mask_first,
    aten.native_layer_norm.default: statistics_in_fp32,
    aten._scaled_dot_product_efficient_attention.default: seeds_on_the_host,
    aten._scaled_dot_product_cudnn_attention.default: seeds_first,
}
"""For each such operator its births."""
