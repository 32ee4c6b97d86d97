"""The kernels of one GPU as the formula meets them: which run, and what they take beside their results."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from mem_gpt_cli.attention.on_cuda import CudaKernel
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels import attention
from mem_gpt_cli.devices.kernels.attention import Shape
from mem_gpt_cli.devices.kernels.build import Build, build_of
from mem_gpt_cli.devices.kernels.cublas import lt_workspace_bytes, workspace_bytes
from mem_gpt_cli.devices.kernels.embedding import embedding_gradient
from mem_gpt_cli.devices.kernels.reductions import Dense, reduction_buffers
from mem_gpt_cli.estimate.books import FP32, INT64, KERNEL_BUFFERS, Storage
from mem_gpt_cli.estimate.tape import Tape

_TORCH = "2.11"
"""The version that is answered for where no torch is installed."""


class CudaKernels:
    """A GPU's kernels; cuBLAS's workspaces stay once they are there.

    ``dtype`` is the half precision that the run computes in, or fp32.
    """

    def __init__(self, gpu: Gpu, dtype: str) -> None:
        self.gpu = gpu
        self.dtype = dtype
        self.build = installed_build()
        self._workspaces: dict[tuple[str, bool], Storage] = {}
        self._row_sums: dict[tuple[int, int, int], Sequence[int]] = {}

    def multiplies(self, tape: Tape, *, biased: bool) -> None:
        """A matrix product: the first of each thread, forward and backward, brings cuBLAS's workspace, and
        the first to which a bias is added cuBLASLt's.
        """
        self._workspace(tape, "cublas", workspace_bytes(self.gpu))
        if biased:
            self._workspace(tape, "cublasLt", lt_workspace_bytes() or 0)

    def _workspace(self, tape: Tape, library: str, nbytes: int) -> None:
        key = (library, tape.in_backward)
        if key not in self._workspaces:
            self._workspaces[key] = Storage(tape.ledger, KERNEL_BUFFERS, nbytes, f"{library} workspace")

    def row_sum(self, rows: int, width: int, item: int) -> Sequence[int]:
        """What adding up the rows of a matrix takes."""
        key = (rows, width, item)
        if key not in self._row_sums:
            source = Dense((rows, width), item)
            self._row_sums[key] = reduction_buffers(self.gpu, source, [0], max(FP32, item))
        return self._row_sums[key]

    def largest(self, numel: int, item: int) -> Sequence[int]:
        """What finding the largest of all elements takes (ATen/native/cuda/ReduceMaxValuesKernel.cu)."""
        return reduction_buffers(self.gpu, Dense((numel,), item), [0], item)

    def attention(self, kernel: CudaKernel, shape: Shape, dropout: float) -> Sequence[int]:
        """What a fused kernel takes in a forward pass."""
        if kernel == "flash":
            return attention.flash_forward(self.gpu, shape, dropout=dropout > 0)
        if kernel == "efficient":
            return attention.efficient_forward(shape)
        return attention.cudnn_forward(self.gpu, shape)

    def attention_backward(self, kernel: CudaKernel, shape: Shape, copies: int) -> Sequence[int]:
        """What a fused kernel takes in backward; ``copies`` of the gradient are made first."""
        if kernel == "flash":
            return attention.flash_backward(shape, copies=copies)
        if kernel == "efficient":
            return attention.efficient_backward(self.gpu, shape, copies=copies)
        return attention.cudnn_backward(shape)

    def embedding_gradient(self, count: int, rows: int, width: int) -> Sequence[int]:
        """What adding up the gradients of ``count`` tokens takes."""
        return embedding_gradient(self.gpu, count, INT64, rows, width)


def installed_build() -> Build:
    """The facts of the torch that is installed, which is not imported."""
    try:
        return build_of(metadata.version("torch"))
    except metadata.PackageNotFoundError:
        return build_of(_TORCH)
