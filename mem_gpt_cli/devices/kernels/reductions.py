"""How CUDA splits a reduction, and the buffer through which its blocks add up their parts.

A reduction of many values into few is split over blocks, which meet in global memory: in a buffer of partial
results and a counter for each column of blocks. A bias's gradient, the sum over the rows of the gradient of
a linear layer's output, takes thousands of times its own size so.

Source: ``setReduceConfig`` and ``ReduceConfig`` in ATen/native/cuda/Reduce.cuh; the order of dimensions is
that of ``reorder_dimensions`` and ``coalesce_dimensions`` in ATen/TensorIterator.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from mem_gpt_cli.devices.gpu import Gpu

_THREADS_A_BLOCK = 512
_WARP = 32
_VALUES_A_LOAD = 4
_MIN_VALUES_A_THREAD = 16
_MAX_VALUES_A_THREAD = 256


class Source(Protocol):
    """What is known of the tensor that is read: torch's own, or its sizes alone."""

    @property
    def shape(self) -> Sequence[int]:
        """Sizes."""

    def stride(self) -> Sequence[int]:
        """Elements from one to the next, in each dimension."""

    def element_size(self) -> int:
        """Bytes of one element."""


@dataclass(frozen=True)
class Dense:
    """A tensor whose elements lie in their order, one after the other; ``item`` bytes each."""

    shape: tuple[int, ...]
    item: int

    def stride(self) -> tuple[int, ...]:
        """Elements from one to the next, in each dimension."""
        return tuple(prod(self.shape[d + 1 :]) for d in range(len(self.shape)))

    def element_size(self) -> int:
        """Bytes of one element."""
        return self.item


def reduction_buffers(gpu: Gpu, source: Source, dims: Sequence[int], itemsize: int) -> list[int]:
    """Bytes of the buffer for partial results and of the counters; empty where each block finishes alone.

    Sources of 2 GiB and more, which torch splits first, are not modelled: nothing is said of them.

    Args:
        gpu: its multiprocessors decide how far to split.
        source: the tensor that is read.
        dims: the dimensions that are reduced; none means all.
        itemsize: bytes of a partial result.
    """
    if 0 in source.shape or _extent(source) > 2**31 - 1:
        return []
    loop = _Loop.over(source, dims)
    return _split(gpu, loop, itemsize)


def threads_a_multiprocessor(gpu: Gpu) -> int:
    """How many threads a multiprocessor holds, by compute capability (CUDA programming guide, appendix)."""
    return {(7, 5): 1024}.get(
        gpu.capability, 2048 if gpu.capability[1] == 0 and gpu.capability[0] < 12 else 1536
    )


@dataclass
class _Loop:
    """The source's dimensions as the kernel walks them: those that are reduced first, and fastest first.

    Args:
        shape: sizes.
        strides: of the source, in elements.
        reduced: how many of the dimensions are reduced.
    """

    shape: list[int]
    strides: list[int]
    reduced: int

    @staticmethod
    def over(source: Source, dims: Sequence[int]) -> _Loop:
        ndim = len(source.shape)
        gone = {dim % ndim for dim in dims} if dims else set(range(ndim))
        kept = [1 if d in gone else size for d, size in enumerate(source.shape)]
        steps = [0 if d in gone else prod(kept[d + 1 :]) for d in range(ndim)]  # of the result
        strides = source.stride()
        order = _order(list(source.shape), steps, list(strides))
        return _coalesced(
            [source.shape[d] for d in order], [steps[d] for d in order], [strides[d] for d in order]
        )


def _order(shape: list[int], steps: list[int], strides: list[int]) -> list[int]:
    order = list(reversed(range(len(shape))))
    for start in range(1, len(order)):
        second = start
        for first in reversed(range(start)):
            verdict = _swap(order[first], order[second], shape, steps, strides)
            if verdict > 0:
                order[first], order[second] = order[second], order[first]
                second = first
            elif verdict < 0:
                break
    return order


def _swap(a: int, b: int, shape: list[int], steps: list[int], strides: list[int]) -> int:
    if (steps[a] == 0) != (steps[b] == 0):
        return 1 if steps[b] == 0 else -1
    for walk in (steps, strides):
        if walk[a] == 0 or walk[b] == 0:
            continue
        if walk[a] != walk[b]:
            return -1 if walk[a] < walk[b] else 1
        if shape[a] > shape[b]:
            return 1
    return 0


def _coalesced(shape: list[int], steps: list[int], strides: list[int]) -> _Loop:
    last = 0
    for dim in range(1, len(shape)):
        together = shape[last] == 1 or shape[dim] == 1
        together = together or all(shape[last] * walk[last] == walk[dim] for walk in (steps, strides))
        if not together:
            last += 1
        if not together or shape[last] == 1:
            steps[last], strides[last] = steps[dim], strides[dim]
        shape[last] = shape[dim] if not together else shape[last] * shape[dim]
    ndim = last + 1 if shape else 0
    return _Loop(shape[:ndim], strides[:ndim], sum(step == 0 for step in steps[:ndim]))


def _split(gpu: Gpu, loop: _Loop, itemsize: int) -> list[int]:
    outputs = prod(loop.shape[loop.reduced :])
    inputs = prod(loop.shape[: loop.reduced])
    ndim = len(loop.shape)
    along_rows = ndim == 0 or loop.reduced == ndim or loop.strides[0] < loop.strides[loop.reduced]
    width, height = (inputs, outputs) if along_rows else (outputs, inputs)
    fastest = 1 if ndim == 0 else loop.strides[0] if along_rows else loop.strides[loop.reduced]
    output_values = 1
    if fastest == 1 and along_rows and width >= 128 and loop.reduced == 1:
        width //= _VALUES_A_LOAD
    elif fastest == 1 and not along_rows:
        output_values = _output_values(loop)
        width //= output_values
    block_width, block_height = _block(width, height, _THREADS_A_BLOCK // output_values)
    step_input, step_output = (block_width, 1) if along_rows else (1, block_width)
    if _ceil(inputs, step_input) < min(block_height * 16, _MAX_VALUES_A_THREAD):
        return []
    step_input *= block_height
    columns = _ceil(outputs // output_values, step_output)
    target = gpu.multiprocessors * (threads_a_multiprocessor(gpu) // (block_width * block_height))
    values = _ceil(inputs, step_input)
    if values < _MAX_VALUES_A_THREAD or columns > target:
        return []
    rows = max(
        min(_ceil(target, columns), _ceil(values, _MIN_VALUES_A_THREAD)), _ceil(values, _MAX_VALUES_A_THREAD)
    )
    if rows <= 1:
        return []
    partial = itemsize * outputs * rows * (1 if along_rows else block_width * output_values)
    return [partial, 4 * columns]


def _output_values(loop: _Loop) -> int:
    """Source: ``get_output_vec_size`` in ATen/native/cuda/Reduce.cuh; the source's address counts as even."""
    values = 4
    steps = [stride for dim, stride in enumerate(loop.strides) if dim != loop.reduced]
    for size in (loop.shape[loop.reduced], *steps):
        while size % values:
            values //= 2
    return values


def _block(width: int, height: int, threads: int) -> tuple[int, int]:
    width = _last_power(width) if width < threads else threads
    height = _last_power(height) if height < threads else threads
    block_height = min(height, threads // min(width, _WARP))
    return min(width, threads // block_height), block_height


def _last_power(n: int) -> int:
    return 1 << max(0, n.bit_length() - 1)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _extent(tensor: Source) -> int:
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(1 + reach) * tensor.element_size()
