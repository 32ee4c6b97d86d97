"""The memory of matrix products on CUDA: workspaces that stay, copies of operands that go with the call.

cuBLAS gets its workspace from torch's allocator when a thread makes its first product, and torch keeps it:
one for each handle and stream, and each thread has a handle of its own. Backward runs in a thread of its own,
so that a training run holds two. cuBLASLt, which adds a bias in the same kernel, has a smaller one besides.
Nothing frees them but ``torch._C._cuda_clearCublasWorkspaces()``.

Sources: ``getCurrentCUDABlasHandle``, ``parseChosenWorkspaceSize`` and ``getCUDABlasLtWorkspace`` in
ATen/cuda/CublasHandlePool.cpp; ``addmm_out_cuda_impl``, ``baddbmm_out_cuda_impl`` and
``isInputCompliesAddmmCudaLt`` in ATen/native/cuda/Blas.cpp; ``prepare_matrix_for_cublas`` in
ATen/native/cuda/cuBlasCommonArgs.h.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.cublas import lt_workspace_bytes, workspace_bytes

aten = torch.ops.aten

MATRIX_PRODUCTS = frozenset((aten.mm.default, aten.mm.out))
BIASED_PRODUCTS = frozenset((aten.addmm.default, aten.addmm.out, aten.addmm_.default))
BATCHED_PRODUCTS = frozenset((aten.bmm.default, aten.bmm.out))
BIASED_BATCHED_PRODUCTS = frozenset((aten.baddbmm.default, aten.baddbmm.out, aten.baddbmm_.default))
OTHER_PRODUCTS = frozenset((aten.mv.default, aten.addmv.default, aten.dot.default, aten.vdot.default))
PRODUCTS = MATRIX_PRODUCTS | BIASED_PRODUCTS | BATCHED_PRODUCTS | BIASED_BATCHED_PRODUCTS | OTHER_PRODUCTS
"""The operators that call cuBLAS; ``linear``, ``matmul`` and ``einsum`` are made of these."""


@dataclass(frozen=True)
class BlasBuffers:
    """Bytes of each buffer that a product allocates after its result: first the transient ones, in order."""

    transient: tuple[int, ...] = ()
    lasting: tuple[int, ...] = ()


class BlasWorkspaces:
    """Says what each product allocates, and remembers which workspaces are there."""

    def __init__(self, gpu: Gpu, environment: Mapping[str, str] = os.environ) -> None:
        self._blas = workspace_bytes(gpu, environment)
        self._blas_lt = lt_workspace_bytes(environment)
        self._held: set[tuple[Literal["cublas", "cublasLt"], bool]] = set()

    def __call__(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, in_backward: bool
    ) -> BlasBuffers:
        """The buffers of one call of an operator; none for an operator that is no product.

        Args:
            func: the operator.
            args, kwargs, result: the call's.
            in_backward: whether backward's thread makes the call, as it does for all that runs inside
                ``Tensor.backward``, a checkpoint's recomputation included.
        """
        if func not in PRODUCTS or not isinstance(result, torch.Tensor) or result.numel() == 0:
            return BlasBuffers()
        lasting = [self._blas] if self._first("cublas", in_backward) else []
        with_lt = func in BIASED_PRODUCTS and adds_bias_in_kernel(args, kwargs, result)
        if with_lt and self._blas_lt is not None and self._first("cublasLt", in_backward):
            lasting.append(self._blas_lt)
        return BlasBuffers(tuple(operand_copies(func, args, result)), tuple(n for n in lasting if n))

    def _first(self, library: Literal["cublas", "cublasLt"], in_backward: bool) -> bool:
        key = (library, in_backward)
        if key in self._held:
            return False
        self._held.add(key)
        return True


def adds_bias_in_kernel(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: torch.Tensor) -> bool:
    """Whether ``addmm`` goes to cuBLASLt, which adds a bias of one dimension in the product's kernel.

    Sources later than torch 2.11 also ask for more than one row of ``mat1``, which matters to a run that
    never multiplies more than one. Source: ``isInputCompliesAddmmCudaLt`` in ATen/native/cuda/Blas.cpp.
    """
    bias, mat2 = args[0], args[2]
    if os.environ.get("DISABLE_ADDMM_CUDA_LT") == "1" or kwargs.get("beta", 1) != 1:
        return False
    row = bias.is_contiguous() and (bias.dim() == 1 or bias.squeeze().dim() == 1)
    return bool(row and bias.shape[-1] == mat2.shape[1] and result.is_contiguous() and min(mat2.shape) > 1)


def operand_copies(func: Any, args: tuple[Any, ...], result: torch.Tensor) -> list[int]:
    """Bytes of the copies of operands that lie in neither of the two ways that cuBLAS reads.

    Source: ``cublasCommonArgs`` in ATen/native/cuda/cuBlasCommonArgs.h, ``prepare_batch_matrix_for_cublas``
    in ATen/native/cuda/Blas.cpp.
    """
    if func in MATRIX_PRODUCTS or func in BIASED_PRODUCTS:
        first, second = args[:2] if func in MATRIX_PRODUCTS else args[1:3]
        operands = (second, first) if result.is_contiguous() else (first, second)
        return [_nbytes(operand) for operand in operands if not _readable(operand)]
    if func in BATCHED_PRODUCTS or func in BIASED_BATCHED_PRODUCTS:
        first, second = args[:2] if func in BATCHED_PRODUCTS else args[1:3]
        columns_first = result.stride(1) == 1 and (
            result.shape[2] == 1 or result.stride(2) >= max(1, result.shape[1])
        )
        operands = (first, second) if columns_first else (second, first)
        return [_nbytes(operand) for operand in operands if not _readable_batch(operand)]
    return []


def _readable(matrix: torch.Tensor) -> bool:
    if matrix.is_contiguous() or matrix.t().is_contiguous():
        return True
    return _rows_or_columns_together(matrix.shape, matrix.stride())


def _readable_batch(matrices: torch.Tensor) -> bool:
    if _rows_or_columns_together(matrices.shape[1:], matrices.stride()[1:]):
        return True
    return matrices.is_contiguous() and 0 not in matrices.stride()[1:]


def _rows_or_columns_together(shape: Sequence[int], stride: Sequence[int]) -> bool:
    (rows, columns), (row, column) = shape, stride
    return (row == 1 and column >= max(1, rows)) or (column == 1 and row >= max(1, columns))


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
