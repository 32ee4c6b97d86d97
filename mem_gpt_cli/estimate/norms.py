"""Normalisation of the hidden states."""

from __future__ import annotations

from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.books import FP32, NORM
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.tape import Tape, Tensor
from mem_gpt_cli.model.architecture import Layer


def norm(run: Pass, layer: Layer, x: Tensor, name: str, width: int | None = None) -> Tensor:
    """The layer's normalisation of ``x`` over its last ``width`` elements."""
    width = width or run.architecture.hidden
    with run.inside(NORM, name):
        if layer.norm == "layernorm":
            return ops.layer_norm(run.tape, x, x.numel // width, run.norm_weights(name, width))
        return rms_norm(run, x, width, name)


def rms_norm(run: Pass, x: Tensor, width: int, name: str) -> Tensor:
    """Root-mean-square norm in fp32 (arXiv:1910.07467), as LlamaRMSNorm and Gemma3RMSNorm write it."""
    tape, item = run.tape, x.item
    weight = run.weight(name, width)
    wide = ops.cast(tape, x, FP32)
    scaled = ops.multiply(tape, wide, _inverse_root(tape, wide, x.numel // width))
    del wide
    if run.dialect.rms == "gemma":
        scaled = ops.multiply(tape, scaled, ops.shift(tape, ops.cast(tape, weight, FP32)))
        return ops.cast(tape, scaled, item)
    return ops.multiply(tape, ops.cast(tape, scaled, item), weight)  # the frame still holds the wide one


def _inverse_root(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """``rsqrt(mean(x ** 2) + eps)``, one number a row."""
    square = ops.power(tape, x)
    mean = ops.reduce_mean(tape, square, rows)
    del square
    return ops.pointwise(tape, "rsqrt", ops.shift(tape, mean), keeps_output=True)
