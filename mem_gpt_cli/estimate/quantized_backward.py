"""The gradient of a quantized product's input: the matrix is written out again, in each backend's way.

Sources: bitsandbytes 0.50 ``autograd/_functions.py`` (``MatMul4Bit.backward``), our own
``quantization/bitsandbytes_layers.py`` (``_EightBitProduct.backward``) and ``quantization/native.py``
(``_Product.backward``). The weights themselves get no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.estimate.books import KERNEL_BUFFERS, WIDTHS
from mem_gpt_cli.estimate.tape import Node, Tape, Tensor
from mem_gpt_cli.estimate.written_out import from_four_bits, from_int8, unpacked
from mem_gpt_cli.quantization.cost import rows_at_once
from mem_gpt_cli.quantization.plan import Method


def gradient_of_input(
    tape: Tape, node: Node, grads: list[Tensor | None], *, method: Method, inputs: int, outputs: int
) -> Sequence[Tensor | None]:
    """A rule of the tape for a product with a matrix of ``outputs`` rows and ``inputs`` columns."""
    gradient = grads[0]
    assert gradient is not None
    own = WIDTHS[tape.dtype]
    if method.backend == "native":
        gradient = _at_width(tape, gradient, own)
        return [_by_pieces(tape, node, gradient, method, inputs, outputs)]
    weights = inputs * outputs
    if method.scheme == "int8":
        gradient = _at_width(tape, gradient, node.edges[0].item)
        full = from_int8(tape, weights, outputs, gradient.item)
    else:
        full = _at_width(tape, from_four_bits(tape, method, weights, own), gradient.item)
    result = _product(tape, node, gradient.item)
    del full
    return [result]


def _by_pieces(tape: Tape, node: Node, gradient: Tensor, method: Method, inputs: int, outputs: int) -> Tensor:
    """Some rows of the matrix at a time; each product is added to the first."""
    step = rows_at_once(method, inputs)
    result: Tensor | None = None
    for first in range(0, outputs, step):
        full = unpacked(tape, method, min(step, outputs - first), inputs, gradient.item)
        part = _product(tape, node, gradient.item)
        result = result or part
        del full, part
    assert result is not None
    return result


def _product(tape: Tape, node: Node, item: int) -> Tensor:
    edge = node.edges[0]
    result = tape.new(edge.numel, item, "mm", edge.slot)
    if tape.cuda:
        tape.cuda.multiplies(tape, biased=False)
    return result


def _at_width(tape: Tape, x: Tensor, item: int) -> Tensor:
    """``x.to(dtype)`` where no gradient is recorded."""
    return x if x.item == item else tape.new(x.numel, item, "_to_copy", KERNEL_BUFFERS)
