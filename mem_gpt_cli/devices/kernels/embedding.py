"""The buffers in which CUDA adds up an embedding's gradient."""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.radix_sort import radix_sort_bytes

_FEW = 3072


def embedding_gradient(
    gpu: Gpu, count: int, index: int, vocabulary: int, width: int, *, by_frequency: bool = False
) -> Sequence[int]:
    """More than 3,072 tokens are sorted, then added up in fp32 by stretches of at most ten equal tokens.

    The stretches' sums are the large part: 1.1 rows in fp32 for each token of a text. Source:
    ``embedding_dense_backward_cuda`` in ATen/native/cuda/Embedding.cu, ``embedding_backward_cuda_kernel`` in
    EmbeddingBackwardKernel.cu.

    Args:
        gpu: what runs.
        count, index: how many tokens, and the bytes of one.
        vocabulary, width: rows of the table, and elements of a row.
        by_frequency: whether gradients are scaled by how often a token comes.
    """
    if count <= _FEW and not by_frequency:
        return []
    segments = min(count, vocabulary)
    stretches = count // 10 + segments
    sorting = [index * count] * 3 + [radix_sort_bytes(gpu, count, index, index, index)]
    adding = [index * count] * 3 + [8, index * segments, index * segments, 8, index * stretches]
    if vocabulary > 128:  # else each word's tokens are added up without stretches
        adding.append(4 * stretches * width)
    return max(sorting, adding, key=sum)
