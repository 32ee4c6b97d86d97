"""What quantizing one matrix takes beside it: the buffers of the moment that has most of them.

Sources: bitsandbytes 0.50 ``quantize_4bit`` and ``int8_vectorwise_quant`` (``backends/default/ops.py`` on
CPU, ``backends/cuda/ops.py``); torchao 0.18 ``choose_qparams_affine`` and ``quantize_affine``
(``quant_primitives.py``); our own in ``packing.pack``. Sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.quantization.cost import FP32, INT8, blocks_of, matrix_parts, native_layout, rows_at_once
from mem_gpt_cli.quantization.plan import Method

INT64 = 8
FP16 = 2


def buffers(method: Method, rows: int, columns: int, dtype: str, device: str) -> Sequence[int]:
    """Bytes of each buffer, all of which live at once, beside the matrix itself.

    Args:
        method: how it will be stored.
        rows: outputs.
        columns: inputs.
        dtype: the model's, by its name in a recipe.
        device: ``cpu`` or ``cuda``.
    """
    item = FP32 if dtype == "fp32" else FP16
    if method.backend != "bitsandbytes":
        return _affine(method, rows, columns, item, casts=device == "cpu")
    weights = rows * columns
    if device == "cuda":
        return _by_kernel(method, matrix_parts(method, rows, columns, item), weights, dtype)
    if method.scheme == "int8":
        return _eight_bit(weights, rows, dtype)
    return _four_bit(method, weights, dtype)


def stored_already(method: Method, rows: int, columns: int, dtype: str, device: str) -> Sequence[int]:
    """What there is among the ``buffers`` of what will be stored, in bytes each; the others are let go."""
    parts = matrix_parts(method, rows, columns, FP32 if dtype == "fp32" else FP16)
    if method.backend == "bitsandbytes":
        if device == "cuda" or method.scheme == "int8":
            return parts
        return parts[:1] if method.double_quant else parts[:2]
    if method.backend == "torchao":
        return parts[1:] if method.scheme == "int8" else ()
    return parts if rows_at_once(method, columns) < rows else parts[1:]


def _by_kernel(method: Method, parts: Sequence[int], weights: int, dtype: str) -> Sequence[int]:
    """bitsandbytes' CUDA kernels read the matrix as it is, int8's in fp16; maxima are centred in a copy."""
    if method.scheme == "int8":
        return parts if dtype == "fp16" else (weights * FP16, *parts)
    maxima = blocks_of(method, weights) * FP32
    return (maxima, maxima, *parts) if method.double_quant else parts


def _eight_bit(weights: int, rows: int, dtype: str) -> Sequence[int]:
    """The matrix in fp16, its product with the rows' factors in fp32, and what that is rounded to."""
    half = () if dtype == "fp16" else (weights * FP16,)
    return *half, rows * FP32, rows * FP32, weights * FP32, weights * FP32


def _four_bit(method: Method, weights: int, dtype: str) -> Sequence[int]:
    """Blocks scaled to their maxima, the numbers of the nearest values, these as bytes and by twos.

    fp4's table is not sorted: the numbers are looked up in 64 bits.
    """
    wide = () if dtype == "fp32" else (weights * FP32,)
    maxima = blocks_of(method, weights) * FP32
    if method.scheme == "fp4":
        return *wide, maxima, weights * FP32, weights * FP32, weights * INT64, weights * INT64
    return *wide, maxima, weights * FP32, weights * FP32, weights, weights // 2, weights // 2


def _affine(method: Method, rows: int, columns: int, item: int, *, casts: bool) -> Sequence[int]:
    """The codes before and after zero points are added, with scales and zero points; the CPU ``casts`` these.

    Our own layout takes some rows at a time: then what will be stored is there from the beginning, and the
    first rows' are there twice.
    """
    if method.backend == "torchao":
        return _torchao(method, rows, columns, item, casts=casts)
    taken = min(rows, rows_at_once(method, columns))
    padded, groups = native_layout(method, columns)
    beside = matrix_parts(method, rows, columns, item) + matrix_parts(method, taken, columns, item)
    return (
        *(beside if taken < rows else ()),
        *((taken * padded * item,) if padded != columns else ()),
        *(taken * groups * each for each in (item, INT8, item if casts else 0)),
        *(taken * padded * item,) * 2,
    )


def _torchao(method: Method, rows: int, columns: int, item: int, *, casts: bool) -> Sequence[int]:
    """int4 has zero points in the model's dtype, and its codes are 32 bits wide before they are packed."""
    weights = rows * columns
    if method.scheme == "int8":
        wide = FP32 if method.mapping == "symmetric" else item
        return *(rows * each for each in (wide, INT8, wide if casts else 0)), weights * wide, weights * wide
    groups = weights // (method.group_size or columns)
    if item < FP32:
        return groups * item, groups * item, weights * item, weights * FP32
    return *(groups * item,) * 3, weights * item, weights * item
