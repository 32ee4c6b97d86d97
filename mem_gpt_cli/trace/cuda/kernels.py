"""What CUDA kernels allocate and free inside one operator, where no tensor shows it: all but attention's.

Each rule is named and says where it comes from. It gives the buffers that are there together when the
operator needs the most. Buffers of a few KiB that come and go before that are left out, as are those of
scans, which take 1 to 2 KiB. What TensorIterator copies on the CPU to bring operands to one dtype, CUDA casts
as it reads.

The sources are those of torch 2.11.
"""
# ruff: noqa: ARG001 - all rules have one signature, and few need all of it

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.embedding import embedding_gradient
from mem_gpt_cli.devices.kernels.radix_sort import radix_sort_bytes, significant_passes
from mem_gpt_cli.devices.kernels.reductions import reduction_buffers
from mem_gpt_cli.trace.linear_cross_entropy import linear_cross_entropy_on_cuda, operator

aten = torch.ops.aten
Rule = Callable[[Gpu, tuple[Any, ...], Mapping[str, Any], Any], Sequence[int]]

_INDEX = 8
"""Bytes of an index, an int64."""
_ROWS_SORTED_APART = 128


def total(gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Sequence[int]:
    """Sums and means add up in fp32; integers and booleans are copied to int64 first.

    Source: ``sum_kernel_cuda`` and ``mean_kernel_cuda`` in ATen/native/cuda/ReduceSumProdKernel.cu and
    ReduceMomentKernel.cu; ``make_reduction`` in ATen/native/ReduceOpsUtils.h.
    """
    source: torch.Tensor = args[0]
    if source.dtype.is_floating_point or source.dtype == torch.int64:
        return reduction_buffers(gpu, source, _dims(args), max(4, source.element_size()))
    copy = torch.empty_like(source, dtype=torch.int64)
    return [_nbytes(copy), *reduction_buffers(gpu, copy, _dims(args), _INDEX)]


def extreme(gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Sequence[int]:
    """Largest and smallest values, ``any`` and ``all`` are compared in the dtype of the source.

    Source: ATen/native/cuda/ReduceMaxValuesKernel.cu, ReduceMinValuesKernel.cu, ReduceLogicKernel.cu.
    """
    return reduction_buffers(gpu, args[0], _dims(args), args[0].element_size())


def place_of_extreme(
    gpu: Gpu,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
) -> Sequence[int]:
    """The place of an extreme is found as pairs of a value and an index, 16 bytes.

    Source: ATen/native/cuda/ReduceArgMaxKernel.cu, ReduceArgMinKernel.cu.
    """
    return reduction_buffers(gpu, args[0], _dims(args), 16)


def vector_norm(gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Sequence[int]:
    """A norm adds up in fp32. Source: ``norm_kernel_cuda_impl`` in ATen/native/cuda/ReduceNormKernel.cu."""
    dims = args[2] if len(args) > 2 and args[2] is not None else ()
    return reduction_buffers(gpu, args[0], dims, max(4, args[0].element_size()))


def foreach_norm(gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Sequence[int]:
    """A partial norm for each chunk of 65,536 values, as many for each tensor as the longest one has.

    Source: ``foreach_tensor_norm_cuda`` in ATen/native/cuda/ForeachReduceOp.cu.
    """
    tensors = args[0]
    chunks = max(-(-tensor.numel() // 65536) for tensor in tensors)
    return [chunks * len(tensors) * max(4, tensors[0].element_size())]


def softmax_backward(
    gpu: Gpu,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
) -> Sequence[int]:
    """The product of gradient and output, in their dtype; ``log_softmax`` needs none.

    Source: ``softmax_backward_cuda_out`` in ATen/native/cuda/SoftMax.cu.
    """
    return [_nbytes(args[0])]


def safe_softmax(gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Sequence[int]:
    """Which scores are -inf, which rows are so throughout, and a zero to put there.

    Source: ``_safe_softmax`` in ATen/native/transformers/attention.cpp, which SDPA's math backend calls.
    """
    return [result.numel(), result.numel() // max(1, result.shape[-1]), result.element_size()]


def layer_norm_backward(
    gpu: Gpu,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
) -> Sequence[int]:
    """Partial sums of the gradients of weight and bias, for more than 65,536 rows of moderate width.

    They are added up by ``sum(0)`` into a second gradient. Fewer rows need no buffer. Source:
    ``LaunchGammaBetaBackwardCUDAKernel`` in ATen/native/cuda/layer_norm_kernel.cu.
    """
    width = 1
    for size in args[2]:
        width *= size
    rows = args[1].numel() // max(1, width)
    gradients = [gradient for gradient in result[1:] if gradient is not None]
    if rows <= 64 * 1024 or width // 32 >= gpu.multiprocessors // 2 or not gradients:
        return []
    blocks = min(64 * 1024 // 2 // -(-width // 32), -(-rows // 32))
    partial = gradients[0].new_empty(blocks, width)
    again = _nbytes(gradients[0])
    return [again, *[_nbytes(partial)] * len(gradients), *reduction_buffers(gpu, partial, [0], 4)]


def embedding_backward(
    gpu: Gpu,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
) -> Sequence[int]:
    """More than 3,072 tokens are sorted and added up by stretches: see ``embedding_gradient``.

    Source: ATen/native/cuda/Embedding.cu.
    """
    gradient, tokens, vocabulary = args[0], args[1], args[2]
    return embedding_gradient(
        gpu, tokens.numel(), tokens.element_size(), vocabulary, gradient.shape[-1], by_frequency=args[4]
    )


def index_put(gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Sequence[int]:
    """Adding up by index sorts the indices: four int64 for each, and the sort's own memory.

    Source: ``index_put_with_sort_kernel`` in ATen/native/cuda/Indexing.cu.
    """
    if not (len(args) > 3 and args[3]):
        return _broadcast_indices(args[1])
    indexed = [size for size, index in zip(args[0].shape, args[1], strict=False) if index is not None]
    indices = [index for index in args[1] if index is not None]
    count = torch.broadcast_shapes(*(index.shape for index in indices)).numel()
    rows = 1
    for size in indexed:
        rows *= size
    return [_INDEX * count] * 4 + [radix_sort_bytes(gpu, count, _INDEX, _INDEX, significant_passes(rows - 1))]


def index(gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Sequence[int]:
    """A mask becomes indices, and several indices are brought to one shape, each as a copy.

    Source: ``make_info`` in ATen/native/TensorAdvancedIndexing.cpp, ``expandTensors`` in IndexingUtils.h.
    """
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    if masks:
        return [_INDEX * masks[0].dim() * result.shape[0]] if result.dim() else []
    return _broadcast_indices(args[1])


def sort(gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Sequence[int]:
    """Up to 4,096 values a row: the positions of one row; one longer row: those, and cub's memory.

    Several longer rows are sorted all at once, as pairs of a row's number and a position; of 128 rows or more
    only the positions are counted, not what cub's segmented sort takes. Source: ``sort_cuda_kernel`` in
    ATen/native/cuda/Sort.cpp, ``do_launch_stable_sort_kernel`` in SortStable.cu.
    """
    source: torch.Tensor = args[0]
    dim = _sorted_dim(args, kwargs)
    length = source.shape[dim] if source.dim() else 1
    positions = _INDEX * length
    if length <= 4096:
        return [positions]
    itemsize, rows = source.element_size(), source.numel() // length
    if rows >= _ROWS_SORTED_APART:
        return [_INDEX * source.numel()]
    if rows > 1:
        count = source.numel()
        return [_INDEX * count] * 2 + [radix_sort_bytes(gpu, count, itemsize, _INDEX, itemsize)]
    return [positions, radix_sort_bytes(gpu, length, itemsize, _INDEX, itemsize)]


def grouped_product(
    gpu: Gpu,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
) -> Sequence[int]:
    """bf16 on Hopper: arguments of 60 bytes a group, and 512 bytes a multiprocessor. Else a loop of products.

    Source: ``bf16bf16_grouped_gemm_impl_sm90_sm100`` in ATen/native/cuda/GroupMM.cu.
    """
    if args[0].dtype != torch.bfloat16 or gpu.capability != (9, 0):
        return []
    groups = kwargs.get("offs", args[2] if len(args) > 2 else None)
    count = groups.numel() if groups is not None else args[0].shape[0]
    return [60 * count, 512 * gpu.multiprocessors]


def singular_vectors(
    gpu: Gpu,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
) -> Sequence[int]:
    """A copy of the matrix with its columns together, and a status; what cuSOLVER asks for is not counted.

    Source: ``svd_cusolver`` in ATen/native/cuda/linalg/BatchLinearAlgebraLib.cpp.
    """
    return [4, _nbytes(args[0])]


def _broadcast_indices(indices: Sequence[torch.Tensor | None]) -> list[int]:
    given = [i for i in indices if i is not None]
    if len(given) < 2:
        return []
    shape = torch.broadcast_shapes(*(i.shape for i in given))
    expanded = [i.expand(shape) for i in given]
    if all(i.stride() == expanded[0].stride() for i in expanded):
        return []
    return [_nbytes(i) for i in expanded if not i.is_contiguous()]


def _dims(args: tuple[Any, ...]) -> Sequence[int]:
    if len(args) < 2 or args[1] is None:
        return ()
    return (args[1],) if isinstance(args[1], int) else args[1]


def _sorted_dim(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    if "dim" in kwargs:
        return int(kwargs["dim"])
    return next((a for a in args[1:] if isinstance(a, int) and not isinstance(a, bool)), -1)


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


RULES: dict[Any, Rule] = {
    operator(): linear_cross_entropy_on_cuda,
    aten.sum.default: total,
    aten.sum.dim_IntList: total,
    aten.mean.default: total,
    aten.mean.dim: total,
    aten.amax.default: extreme,
    aten.amin.default: extreme,
    aten.max.default: extreme,
    aten.min.default: extreme,
    aten.any.default: extreme,
    aten.all.default: extreme,
    aten.argmax.default: place_of_extreme,
    aten.argmin.default: place_of_extreme,
    aten.max.dim: place_of_extreme,
    aten.min.dim: place_of_extreme,
    aten.linalg_vector_norm.default: vector_norm,
    aten._foreach_norm.Scalar: foreach_norm,
    aten._softmax_backward_data.default: softmax_backward,
    aten._safe_softmax.default: safe_softmax,
    aten.native_layer_norm_backward.default: layer_norm_backward,
    aten.embedding_dense_backward.default: embedding_backward,
    aten.index.Tensor: index,
    aten.index_put.default: index_put,
    aten.index_put_.default: index_put,
    aten.sort.default: sort,
    aten.sort.stable: sort,
    aten._grouped_mm.default: grouped_product,
    aten._linalg_svd.default: singular_vectors,
}
