"""What clipping gradients takes: next to nothing, but not nothing."""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.estimate.books import FP32, OPTIMIZER_TEMPORARIES, Ledger, Storage
from mem_gpt_cli.estimate.cuda import CudaKernels

_CHUNK = 65536


def clip(ledger: Ledger, gradients: Sequence[int], cuda: CudaKernels | None) -> None:
    """Book ``clip_grad_norm_`` of gradients with so many elements each.

    There is a norm of each, all norms in a row, their norm, and the factor; the gradients are scaled in
    place. On CUDA partial norms come before: one for each 65,536 values of the longest gradient, for every
    gradient. Source: torch/nn/utils/clip_grad.py; ``foreach_tensor_norm_cuda`` in
    ATen/native/cuda/ForeachReduceOp.cu.
    """

    def take(nbytes: int, operation: str) -> Storage:
        return Storage(ledger, OPTIMIZER_TEMPORARIES, nbytes, operation)

    count = len(gradients)
    if cuda and count:
        partial = take(FP32 * count * -(-max(gradients) // _CHUNK), "_foreach_norm")
    norms = [take(FP32, "_foreach_norm") for _ in range(count)]
    if cuda and count:
        del partial
    stacked = take(FP32 * count, "stack")
    del norms, stacked
    factor = [take(FP32, operation) for operation in ("linalg_vector_norm", "add", "reciprocal", "clamp")]
    del factor
