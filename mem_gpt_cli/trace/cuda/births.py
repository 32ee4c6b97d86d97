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


def mask_first(result: Any) -> Iterator[Birth]:
    """Dropout makes its mask before its output: ``native_dropout_cuda`` in ATen/native/cuda/Dropout.cu."""
    output, mask = result
    yield mask, None
    yield output, None


def statistics_in_fp32(result: Any) -> Iterator[Birth]:
    """Mean and reciprocal deviation are fp32 whatever the input; on the CPU they have the input's dtype.

    Source: ``layer_norm_cuda`` in ATen/native/cuda/layer_norm_kernel.cu.
    """
    output, *statistics = result
    yield output, None
    for tensor in statistics:
        yield tensor, FP32 * tensor.numel()


def seeds_on_the_host(result: Any) -> Iterator[Birth]:
    """Seed and offset of dropout lie in the host's memory, but for CUDA graphs.

    Source: ``_efficient_attention_forward`` in ATen/native/transformers/cuda/attention.cu.
    """
    output, logsumexp, seed, offset = result
    yield output, None
    yield logsumexp, None
    yield seed, 0
    yield offset, 0


BIRTHS: dict[Any, Births] = {
    aten.native_dropout.default: mask_first,
    aten.native_layer_norm.default: statistics_in_fp32,
    aten._scaled_dot_product_efficient_attention.default: seeds_on_the_host,
}
"""For each such operator its births."""
