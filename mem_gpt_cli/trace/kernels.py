"""What CPU kernels allocate and free inside one operator, where no tensor shows it.

Each rule is named, says where it comes from, and is held against the allocator's own account in the tests.
The sizes are those of torch's CPU kernels; they depend on the number of threads where a kernel keeps a buffer
for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mem_gpt_cli.ledger import EventLog
from mem_gpt_cli.trace import optimizer_kernels
from mem_gpt_cli.trace.linear_cross_entropy import linear_cross_entropy, operator
from mem_gpt_cli.trace.probe import Probe
from mem_gpt_cli.trace.quantized_kernels import BITSANDBYTES, inner_product

aten = torch.ops.aten
Rule = Callable[[tuple[Any, ...], Mapping[str, Any], Any], int]

REDUCED = (torch.bfloat16, torch.float16)


class CpuKernels:
    """The inner buffers of CPU kernels: by rule, and by asking where the processor decides."""

    def __init__(self) -> None:
        self.probe = Probe()

    def __call__(
        self, log: EventLog, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> tuple[int, ...]:
        """See ``KernelBuffers``."""
        if func.namespace == "bitsandbytes":
            return self._of_bitsandbytes(log, func, args, kwargs, result)
        if self.probe.wants(func, args):
            storage = log.storage(0, "workspace")
            self.probe.note(func, args, kwargs, storage)
            return (storage,)
        rule = RULES.get(func)
        nbytes = 0 if rule is None else rule(args, kwargs, result)
        return (log.storage(nbytes, "workspace"),) if nbytes else ()

    def _of_bitsandbytes(
        self, log: EventLog, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> tuple[int, ...]:
        """By rule; and the scratch of torch's own product inside a product of bitsandbytes."""
        rule = BITSANDBYTES.get(func._opname) or optimizer_kernels.BITSANDBYTES.get(func._opname)
        storages = [] if rule is None else [log.storage(rule(args, kwargs, result), "workspace")]
        product = inner_product(func, args, kwargs)
        if product is not None and self.probe.wants(*product):
            storages.append(log.storage(0, "workspace"))
            self.probe.note(*product, {}, storages[-1])
        return tuple(storages)


def flash_attention(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """Scores of one block, their maxima and sums, and the block of the output, in fp32, for each thread.

    Source: ``cpu_flash_attention`` in ATen/native/cpu/FlashAttentionKernel.cpp. Reduced precision adds packed
    copies of keys and values whose sizes depend on the processor: see ``probe``.
    """
    query, key = args[0], args[1]
    rows, columns = _flash_blocks(query, key)
    return int(torch.get_num_threads() * 4 * (rows * columns + 2 * rows + rows * query.shape[-1]))


def flash_attention_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """Scores and their gradient, one block for each thread, the row sums of one, and the incoming gradient.

    The gradient is copied unless it lies as ``[batch, length, heads, size]``, as attention's output does in
    most models. Source: ``cpu_flash_attention_backward`` in the same file.
    """
    gradient = args[0]
    rows, columns = _flash_blocks(args[1], args[2])
    copy = 0 if gradient.transpose(1, 2).is_contiguous() else gradient.numel() * gradient.element_size()
    return torch.get_num_threads() * 4 * 2 * rows * columns + 4 * rows + int(copy)


def _flash_blocks(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of a block of scores: ``flash_attention_kernel_impl`` picks by the query's length."""
    length = query.shape[2]
    rows = 256 if length >= 768 else 64 if length >= 192 else 32
    return min(rows, length), min(512, key.shape[2])


def safe_softmax(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """Which scores are -inf, and which rows are so throughout, as booleans.

    Source: ``_safe_softmax_cpu`` in ATen/native/SoftMax.cpp, which SDPA's math backend calls.
    """
    return int(result.numel() + result.numel() // max(1, result.shape[-1]))


def layer_norm_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """Partial sums of the gradients of weight and bias, two rows for each thread; frozen ones have none.

    Source: ``LayerNormBackwardKernelImplInternal`` in ATen/native/cpu/layer_norm_kernel.cpp.
    """
    if result[1] is None and result[2] is None:
        return 0
    width = 1
    for size in args[2]:
        width *= size
    grad_weight = result[1] if result[1] is not None else result[0]
    itemsize = 4 if grad_weight.dtype in REDUCED else grad_weight.element_size()
    return int(torch.get_num_threads() * 2 * width * itemsize)


def type_promotion(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """A whole copy, in the common dtype, of each tensor operand of another dtype, and of such a result.

    Only what is computed in place has a result of another dtype. On CPU ``TensorIterator`` casts before it
    computes; on CUDA the kernel casts as it reads. Source: ``TensorIteratorBase::compute_types`` in
    ATen/TensorIterator.cpp.
    """
    operands = [a for a in args[:2] if isinstance(a, torch.Tensor)]
    if len(operands) < 2 or operands[0].dtype == operands[1].dtype:
        return 0
    common = torch.result_type(operands[0], operands[1])
    unlike = sum(tensor.numel() for tensor in (*operands, result) if tensor.dtype != common)
    return int(unlike * common.itemsize)


def sort(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """The positions of one row, before they are written to every row.

    Source: ``fill_indices`` in ATen/native/cpu/SortingKernel.cpp.
    """
    values = result[0]
    dims = [a for a in args[1:] if isinstance(a, int) and not isinstance(a, bool)]
    return 8 * int(values.shape[kwargs.get("dim", dims[0] if dims else -1)]) if values.dim() else 0


def triangle_in_place(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """Copies of a part of something wider, where its matrices do not lie one after the other.

    The result is made apart, and so is the input unless its elements lie together all the same.

    Source: ``checkTrilTriuBatchContiguous`` in ATen/native/TriangularOpsUtils.h, ``compute_triu_tril`` in
    TriangularOps.cpp.
    """
    part = args[0]
    if part.dim() <= 3 or part.stride() == torch.empty(part.shape, device="meta").stride():
        return 0
    copies = 1 if part.is_contiguous() else 2
    return int(copies * part.numel() * part.element_size())


RULES: dict[Any, Rule] = {
    **optimizer_kernels.TORCH,
    operator(): linear_cross_entropy,
    aten.triu_.default: triangle_in_place,
    aten.sort.default: sort,
    aten.sort.stable: sort,
    aten._scaled_dot_product_flash_attention_for_cpu.default: flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: flash_attention_backward,
    aten._safe_softmax.default: safe_softmax,
    aten.native_layer_norm_backward.default: layer_norm_backward,
    **dict.fromkeys(
        (
            aten.add.Tensor,
            aten.add_.Tensor,
            aten.sub.Tensor,
            aten.sub_.Tensor,
            aten.mul.Tensor,
            aten.mul_.Tensor,
            aten.div.Tensor,
            aten.div_.Tensor,
        ),
        type_promotion,
    ),
}
