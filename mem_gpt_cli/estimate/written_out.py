"""Quantized matrices written out, in full or some rows of them, as each backend's code does it.

Sources: ``quantization/packing.py`` over torchao 0.18 ``dequantize_affine``; bitsandbytes 0.50
``functional.py`` (``dequantize_4bit``) and ``autograd/_functions.py`` (``MatMul8bitFp``). Sizes are in
elements, widths (``item``) in bytes; all but a result with a ``slot`` of its own is workspace.
"""

from __future__ import annotations

from mem_gpt_cli.estimate.books import FP32, KERNEL_BUFFERS
from mem_gpt_cli.estimate.tape import Tape, Tensor
from mem_gpt_cli.quantization.cost import INT8, blocks_of, native_layout
from mem_gpt_cli.quantization.plan import Method


def unpacked(
    tape: Tape, method: Method, rows: int, columns: int, item: int, slot: int | None = KERNEL_BUFFERS
) -> Tensor:
    """``packing.unpack``: two codes a byte are taken apart, then ``values``."""
    padded, groups = native_layout(method, columns)
    codes = tape.new(rows * padded, INT8, "bitwise_and", KERNEL_BUFFERS) if method.scheme == "int4" else None
    asymmetric = method.mapping == "asymmetric"
    found = values(tape, rows * padded, rows * groups, item, zeros=asymmetric, slot=slot)
    del codes
    return found


def values(
    tape: Tape, numel: int, groups: int, item: int, *, zeros: bool, slot: int | None = KERNEL_BUFFERS
) -> Tensor:
    """``dequantize_affine``: the codes in the dtype, less their zero points, times their scales.

    ``slot`` is what the values are booked under; all before them is workspace.
    """
    made = [tape.new(numel, item, "_to_copy", KERNEL_BUFFERS)]
    if zeros:
        points = tape.new(groups, item, "_to_copy", KERNEL_BUFFERS)
        made = [tape.new(numel, item, "sub", KERNEL_BUFFERS)]
        del points
    made.append(tape.new(numel, item, "mul", slot))
    return made.pop()


def from_int8(tape: Tape, weights: int, rows: int, item: int) -> Tensor:
    """bitsandbytes' int8 outside of its own products: the codes in the input's dtype, times their scales."""
    full = tape.new(weights, item, "_to_copy", KERNEL_BUFFERS)
    scales = tape.new(rows, FP32, "mul", KERNEL_BUFFERS)
    if item != FP32 and not tape.cuda:
        tape.scratch(2 * weights * FP32, "mul_")  # read and written in fp32, both beside the codes
    del scales
    return full


def from_four_bits(tape: Tape, method: Method, weights: int, item: int) -> Tensor:
    """``dequantize_4bit``, as a tensor of its own; before it the block maxima, where they are quantized."""
    maxima = None
    if method.double_quant:
        maxima = tape.new(blocks_of(method, weights), FP32, "dequantize_blockwise", KERNEL_BUFFERS)
    full = tape.new(weights, item, "dequantize_4bit", KERNEL_BUFFERS)
    del maxima
    return full
