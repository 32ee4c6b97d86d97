"""Which kernel of CUTLASS runs memory-efficient attention's backward, and the workspace it asks for.

Source: mem_eff_attention/kernel_backward.h, the order of kernels in mem_eff_attention/kernels/cutlassB.h, and
``_efficient_attention_backward`` in attention_backward.cu, all of ATen/native/transformers/cuda.
"""

from __future__ import annotations

from dataclasses import dataclass

from mem_gpt_cli.devices.gpu import Gpu

_FP32 = 4
_LOCK_ELEMENTS = 4  # a lock, a counter and padding beside each tile of the query's gradient
_WIDEST = 65536


@dataclass(frozen=True)
class BackwardKernel:
    """One kernel by what its buffers hang on.

    Args:
        queries, keys: rows and columns of a block of scores.
        widest: the largest head it takes.
        half: whether tensors are fp16 or bf16.
        capability: of the architecture it is written for, as 70, 75 or 80.
    """

    queries: int
    keys: int
    widest: int
    half: bool
    capability: int

    @property
    def keeps_gradients_in_registers(self) -> bool:
        """``kOutputInRF``: the gradients of keys and values need no buffer."""
        return self.half and self.widest <= self.queries

    @property
    def stages_key_gradients(self) -> bool:
        """``kNeedsAccumGradK``: gradients of keys and values are summed in fp32 first."""
        return self.half and not self.keeps_gradients_in_registers

    @property
    def sums_rows(self) -> bool:
        """``kKernelComputesDelta``: the kernel itself sums gradient times output."""
        return self.half and (self.keeps_gradients_in_registers or self.capability != 70)


def backward_kernel(gpu: Gpu, *, half: bool, head_size: int) -> BackwardKernel:
    """The first kernel in the order of ``dispatch_cutlassB`` that takes the head and fits into shared memory.

    In what 8.6, 8.9 and 12.x have of it, 99 KiB, the blocks of 128 for wide heads do not fit, except the
    widest in reduced precision and one for heads up to 96.
    """
    capability = 80 if gpu.capability >= (8, 0) else 75 if gpu.capability >= (7, 5) else 70
    widest = next(size for size in (32, 64, 128, _WIDEST) if head_size <= size)
    if half and 64 < head_size <= 96 and gpu.capability in ((8, 6), (8, 9)):
        widest = 96
    queries, keys = 64, 64
    if half and (widest in (96, _WIDEST) or (widest == 128 and capability < 80)):
        queries = 128
    elif widest > 64 and _has_large_shared_memory(gpu):
        queries, keys = 128, 128 if half else 64
    return BackwardKernel(queries, keys, widest, half, capability)


def _has_large_shared_memory(gpu: Gpu) -> bool:
    """163 KiB a block or more (CUDA C++ programming guide, specifications per compute capability)."""
    return gpu.capability in ((8, 0), (8, 7)) or gpu.capability[0] in (9, 10)


def workspace_bytes(
    kernel: BackwardKernel,
    blocks: int,
    queries: int,
    keys: int,
    size: int,
    value_size: int,
    *,
    deterministic: bool = False,
) -> int:
    """Tiles of the query's gradient with their locks; where they are staged, gradients of keys and values.

    Args:
        kernel: what runs.
        blocks: heads of all sequences.
        queries, keys: lengths.
        size, value_size: of a head of queries and keys, and of values.
        deterministic: whether torch is told to use deterministic algorithms.
    """
    staged = 0
    if kernel.stages_key_gradients:
        wide = sum(_rounded(width, kernel.queries) for width in (size, value_size))
        splits = 1 if deterministic else _key_splits(kernel, blocks, keys)
        staged = splits * kernel.keys * wide
    tiles = -(-queries // kernel.queries) * -(-size // kernel.keys)
    elements = staged + tiles * (kernel.queries * kernel.keys + _LOCK_ELEMENTS)
    return blocks * _rounded(elements, 4) * _FP32


def _key_splits(kernel: BackwardKernel, blocks: int, keys: int) -> int:
    """How many blocks share the keys, of a kernel that stages their gradients: ``num_splits_key``."""
    if blocks >= 256 and keys <= 2 * kernel.keys:
        return 1
    return max(1, min(-(-keys // kernel.keys), 200 // blocks))


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
