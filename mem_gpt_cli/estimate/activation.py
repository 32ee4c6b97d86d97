"""Activation functions, as transformers computes them (``transformers/activations.py``)."""

from __future__ import annotations

from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.tape import Tape, Tensor


def activate(tape: Tape, name: str, x: Tensor) -> Tensor:
    """The activation ``name`` of ``x``: fused ones keep their input, those in Python keep each factor."""
    if name in ("gelu_new", "gelu_accurate"):
        return _gelu_by_tanh(tape, x)
    if name == "gelu_fast":
        return _gelu_fast(tape, x)
    if name == "quick_gelu":
        return _quick_gelu(tape, x)
    if name == "relu2":
        return ops.pointwise(
            tape, "square", ops.pointwise(tape, "relu", x, keeps_output=True), keeps_input=True
        )
    if name in ("relu", "sigmoid", "tanh"):
        return ops.pointwise(tape, name, x, keeps_output=True)
    return ops.pointwise(tape, name, x, keeps_input=True)


def _scaled(tape: Tape, x: Tensor) -> Tensor:
    return ops.pointwise(tape, "mul", x)


def _gelu_by_tanh(tape: Tape, x: Tensor) -> Tensor:
    """``0.5 * x * (1 + tanh(c * (x + 0.044715 * x ** 3)))``, operation by operation."""
    half = _scaled(tape, x)
    cubic = _scaled(tape, _scaled_sum(tape, x))
    gate = ops.pointwise(tape, "tanh", cubic, keeps_output=True)
    del cubic
    gate = ops.shift(tape, gate)
    return ops.multiply(tape, half, gate)


def _scaled_sum(tape: Tape, x: Tensor) -> Tensor:
    """``x + 0.044715 * x ** 3``."""
    return ops.add(tape, x, _scaled(tape, ops.power(tape, x)))


def _gelu_fast(tape: Tape, x: Tensor) -> Tensor:
    """``0.5 * x * (1 + tanh(x * 0.798 * (1 + 0.0447 * x * x)))``."""
    half = _scaled(tape, x)
    outer = _scaled(tape, x)
    square = ops.shift(tape, ops.multiply(tape, _scaled(tape, x), x))
    inner = ops.multiply(tape, outer, square)
    del outer, square
    inner = ops.shift(tape, ops.pointwise(tape, "tanh", inner, keeps_output=True))
    return ops.multiply(tape, half, inner)


def _quick_gelu(tape: Tape, x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 * x)``."""
    gate = ops.pointwise(tape, "sigmoid", _scaled(tape, x), keeps_output=True)
    return ops.multiply(tape, x, gate)
