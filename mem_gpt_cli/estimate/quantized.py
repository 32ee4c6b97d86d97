"""Products with quantized matrices and look-ups in quantized tables, as each backend's code runs.

Sources: bitsandbytes 0.50 ``autograd/_functions.py`` (``matmul_4bit``, ``MatMul8bitLt``) and its kernels in
``backends/{default,cpu,cuda}/ops.py``; torchao 0.18 ``Int8Tensor``, ``IntxUnpackedToInt8Tensor``,
``Int4OpaqueTensor`` and ``dequantize_affine``; our own in ``quantization/native.py``.
Sizes are in elements, widths (``item``) in bytes. All that is made on the way to a result, the matrix
written out above all, is workspace (``ledger.Ledger`` labels it so too); the result is what it is for.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from mem_gpt_cli.devices.kernels.bitsandbytes import multiplies_integers, reads_four_bits
from mem_gpt_cli.estimate.books import FP32, KERNEL_BUFFERS, WIDTHS
from mem_gpt_cli.estimate.quantized_backward import gradient_of_input
from mem_gpt_cli.estimate.tape import Parameter, Tape, Tensor
from mem_gpt_cli.estimate.written_out import from_int8, unpacked, values
from mem_gpt_cli.quantization.cost import INT8, blocks_of, native_layout, rows_at_once
from mem_gpt_cli.quantization.plan import Method

FP16 = 2
INT64 = 8


class Product(NamedTuple):
    """``rows`` of ``x``, ``inputs`` wide, times a matrix with ``outputs`` rows of its own."""

    tape: Tape
    x: Tensor
    method: Method
    rows: int
    inputs: int
    outputs: int
    biased: bool
    slot: int | None

    @property
    def weights(self) -> int:
        """Elements of the matrix."""
        return self.inputs * self.outputs

    def buffer(self, numel: int, item: int, operation: str) -> Tensor:
        """Something that is made on the way."""
        return self.tape.new(numel, item, operation, KERNEL_BUFFERS)

    def multiplied(self, *, adds: bool = True) -> None:
        """Note that cuBLAS ran, on a card; whether it ``adds`` the bias, if there is one."""
        if self.tape.cuda:
            self.tape.cuda.multiplies(self.tape, biased=self.biased and adds)

    def result(self) -> Tensor:
        """The product."""
        return self.tape.new(self.rows * self.outputs, self.x.item, "mm", self.slot)


def product(
    tape: Tape, x: Tensor, weight: Parameter, outputs: int, *, biased: bool, slot: int | None
) -> Tensor:
    """``x @ weight`` by the code of the weight's backend; the result is booked under ``slot``."""
    method, inputs = weight.method, weight.numel // outputs
    assert method is not None
    run = Product(tape, x, method, x.numel // inputs, inputs, outputs, biased, slot)
    (out,) = tape.kept("products", lambda: (_forward(run),))
    rule = partial(gradient_of_input, method=method, inputs=inputs, outputs=outputs)
    return tape.record("mm", out, (x,), (), rule)


def _forward(run: Product) -> Tensor:
    method = run.method
    if method.backend == "native":
        return _native(run)
    if method.backend == "torchao":
        if method.scheme == "int4":
            return run.result()
        return _by_rows(run) if method.mapping == "symmetric" else _affine(run)
    if method.scheme != "int8":
        return _four_bit(run)
    if run.tape.cuda:
        return _eight_bit_on_cuda(run)
    return _eight_bit_in_training(run) if run.tape.training else _eight_bit(run)


def lookup(tape: Tape, table: Parameter, tokens: int, width: int) -> Tensor:
    """The rows of ``tokens`` of a table in our own layout: their codes and scales, then their values."""
    method = table.method
    assert method is not None
    padded, groups = native_layout(method, width)
    codes = tape.new(
        tokens * padded // (2 if method.scheme == "int4" else 1), INT8, "embedding", KERNEL_BUFFERS
    )
    scales = tape.new(tokens * groups, table.item, "embedding", KERNEL_BUFFERS)
    zeros = (
        tape.new(tokens * groups, INT8, "embedding", KERNEL_BUFFERS)
        if method.mapping == "asymmetric"
        else None
    )
    out = unpacked(tape, method, tokens, width, table.item, None if padded == width else KERNEL_BUFFERS)
    if padded != width:
        out = tape.new(tokens * width, table.item, "clone")
    del codes, scales, zeros
    return out


def _four_bit(run: Product) -> Tensor:
    """The matrix is written out, the block maxima before it where they are quantized too; then one product.

    On CUDA some shapes take a kernel that reads 4 bits.
    """
    cuda, operation, maxima = run.tape.cuda, "gemm_4bit", None
    block = run.method.group_size or run.weights
    if cuda and reads_four_bits(cuda.gpu, cuda.dtype, run.rows, run.outputs, run.inputs, block):
        return run.result()
    if run.method.double_quant:
        blocks = blocks_of(run.method, run.weights)
        centred = run.buffer(blocks, FP32, operation)
        maxima = run.buffer(blocks, FP32, operation)
        if not cuda:
            del centred
    full = run.buffer(run.weights, run.x.item, operation)
    out = run.result()
    run.multiplied()
    del full, maxima
    return out


def _eight_bit_in_training(run: Product) -> Tensor:
    """On the CPU the matrix is written out instead (``bitsandbytes_layers._EightBitProduct``)."""
    full = from_int8(run.tape, run.weights, run.outputs, run.x.item)
    out = run.result()
    del full
    return out


def _eight_bit(run: Product) -> Tensor:
    """The input is rounded to int8 row by row; without AVX-512 the integers are multiplied as fp32 copies."""
    operation, result = "int8_scaled_mm", run.rows * run.outputs
    codes, statistics = _rounded(run)
    wide = []
    if not multiplies_integers():
        wide = [run.buffer(numel, FP32, operation) for numel in (run.x.numel, run.weights, result)]
        del wide[:2]
    slot = run.slot if run.x.item == FP32 else KERNEL_BUFFERS  # the operator's result is there all along
    integers = run.tape.new(result, FP32, operation, slot)
    wide.clear()
    scales, scaled = run.buffer(result, FP32, operation), run.buffer(result, FP32, operation)
    run.tape.scratch(result * FP32, operation)
    del scales
    out = run.tape.new(result, FP32, operation, slot)
    del scaled
    if run.x.item != FP32:
        out = run.result()
    del integers, codes, statistics
    return out


def _rounded(run: Product) -> tuple[Tensor, Tensor]:
    """``int8_vectorwise_quant`` in torch's own operators, of an input in fp16 (others are copied first)."""
    tape, size, operation = run.tape, run.x.numel, "int8_vectorwise_quant"
    half = None if tape.dtype == "fp16" else run.buffer(size, FP16, "_to_copy")
    magnitudes = run.buffer(size, FP16, operation)
    largest, where = run.buffer(run.rows, FP16, operation), run.buffer(run.rows, INT64, operation)
    del magnitudes, where
    statistics = run.buffer(run.rows, FP32, operation)
    del largest
    factors, scaled = run.buffer(run.rows, FP32, operation), run.buffer(size, FP32, operation)
    tape.scratch(size * FP32, operation)
    del factors
    rounded = run.buffer(size, FP32, operation)
    del scaled
    codes = run.buffer(size, INT8, operation)
    del half, rounded
    return codes, statistics


def _eight_bit_on_cuda(run: Product) -> Tensor:
    """Kernels of bitsandbytes' own: int8 in, int32 out of cuBLASLt, fp16 from that, and the model's dtype.

    cuBLASLt does not take inputs that 4 does not divide: those are multiplied as fp32 copies.
    """
    tape, result = run.tape, run.rows * run.outputs
    half = None if tape.dtype == "fp16" else run.buffer(run.x.numel, FP16, "_to_copy")
    statistics = run.buffer(run.rows, FP32, "int8_vectorwise_quant")
    codes = run.buffer(run.x.numel, INT8, "int8_vectorwise_quant")
    del half
    integers = run.buffer(result, FP32, "int8_scaled_mm")
    if run.inputs % 4:
        wide = [run.buffer(numel, FP32, "int8_scaled_mm") for numel in (run.x.numel, run.weights)]
        product = run.buffer(result, FP32, "int8_scaled_mm")
        run.multiplied(adds=False)
        wide.clear()
        tape.scratch(result * FP32, "int8_scaled_mm")
        del product
    slot = run.slot if tape.dtype == "fp16" else KERNEL_BUFFERS
    out = tape.new(result, FP16, "int8_scaled_mm", slot)
    if tape.dtype != "fp16":
        out = run.result()
    del integers, codes, statistics
    return out


def _by_rows(run: Product) -> Tensor:
    """The codes in the input's dtype, one product, and the scales times its columns; the bias in place."""
    full = run.buffer(run.weights, run.x.item, "_to_copy")
    unscaled = run.buffer(run.rows * run.outputs, run.x.item, "mm")
    run.multiplied(adds=False)
    del full
    scales = run.buffer(run.outputs, run.x.item, "_to_copy") if run.x.item != FP32 else None
    out = run.result()
    del unscaled, scales
    return out


def _affine(run: Product) -> Tensor:
    """The matrix is written out, then one product."""
    full = values(run.tape, run.weights, run.outputs, run.x.item, zeros=True)
    out = run.result()
    run.multiplied()
    del full
    return out


def _native(run: Product) -> Tensor:
    """Some rows of the matrix at a time: written out, multiplied, and copied into the result."""
    tape, item = run.tape, WIDTHS[run.tape.dtype]
    if run.x.item != item:
        run = run._replace(x=run.buffer(run.x.numel, item, "_to_copy"))
    step = rows_at_once(run.method, run.inputs)
    if run.outputs <= step:
        full = unpacked(tape, run.method, run.outputs, run.inputs, item)
        out = run.result()
        run.multiplied()
        del full
        return out
    out = run.result()
    for first in range(0, run.outputs, step):
        rows = min(step, run.outputs - first)
        full = unpacked(tape, run.method, rows, run.inputs, item)
        part = run.buffer(run.rows * rows, run.x.item, "mm")
        run.multiplied()
        del full, part
    return out
