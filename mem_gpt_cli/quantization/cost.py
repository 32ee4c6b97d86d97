"""Bytes of quantized weights: what bitsandbytes stores for each matrix, and what it leaves alone.

Held against bitsandbytes 0.50.2 on GPT-2 and Llama: no byte off, for int8, nf4 and double quantization.
Sources: bitsandbytes 0.50 ``functional.py`` (``quantize_4bit``, ``QuantState``) and ``nn/modules.py``
(``Int8Params``); LLM.int8 is arXiv:2208.07339, NF4 and double quantization are QLoRA's, arXiv:2305.14314.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from mem_gpt_cli.model.architecture import Architecture, Tensor

Scheme = Literal["none", "int8", "nf4"]

FP32 = 4
BLOCK = 64
SECOND_BLOCK = 256
CODE_4BIT = 16
CODE_8BIT = 256


class StoredTensor(NamedTuple):
    """Bytes of one weight tensor: ``values``, and the scales and tables that go with them."""

    values: int
    scales: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.values + self.scales


def is_quantized(tensor: Tensor, scheme: Scheme) -> bool:
    """Linear matrices of the layers; the output head, embeddings, norms and biases keep the model's dtype.

    transformers' ``get_modules_to_not_convert`` leaves out the output head (and what is tied to it), and
    bitsandbytes replaces modules of two-dimensional weight alone: stacked experts stay as they are.
    """
    if scheme == "none" or tensor.kind != "linear" or tensor.dtype_bytes is not None:
        return False
    return "*" in tensor.name and len(tensor.shape) == 2


def stored(tensor: Tensor, scheme: Scheme, item: int, *, double_quantization: bool = True) -> StoredTensor:
    """Bytes that one of the tensors takes in a model whose dtype is ``item`` bytes wide."""
    if not is_quantized(tensor, scheme):
        return StoredTensor(tensor.numel * (tensor.dtype_bytes or item))
    if scheme == "int8":
        return StoredTensor(tensor.numel, int8_scales(tensor))
    return StoredTensor(
        -(-tensor.numel // 2), nf4_scales(tensor.numel, double_quantization=double_quantization)
    )


def int8_scales(tensor: Tensor) -> int:
    """One fp32 scale an output row (``SCB``). GPT-2's Conv1D is transposed when it is replaced."""
    outputs = tensor.shape[1] if _is_conv1d(tensor) else tensor.shape[0]
    return outputs * FP32


def _is_conv1d(tensor: Tensor) -> bool:
    return tensor.name.startswith("transformer.h.*.") and ".c_" in tensor.name


def nf4_scales(numel: int, *, double_quantization: bool) -> int:
    """Block maxima and tables of one 4-bit tensor.

    Plain: an fp32 maximum for every 64 weights and the 16 values of the code, 0.5 bit a weight. Double: the
    maxima have 8 bits, with an fp32 maximum for every 256 of them, their mean in fp32 (``offset``) and a code
    of 256 values: 0.127 bit a weight.
    """
    blocks = -(-numel // BLOCK)
    code = CODE_4BIT * FP32
    if not double_quantization:
        return blocks * FP32 + code
    return blocks + -(-blocks // SECOND_BLOCK) * FP32 + FP32 + CODE_8BIT * FP32 + code


def weight_bytes(architecture: Architecture, scheme: Scheme, item: int, *, rounding: int = 1) -> int:
    """All weights and buffers of a model, tied ones once; ``rounding`` is the allocator's grain in bytes."""
    total = 0
    for tensor in architecture.tensors:
        one = stored(tensor, scheme, item)
        total += tensor.count * sum(-(-part // rounding) * rounding for part in (one.values, one.scales))
    return total


def product_scratch_bytes(scheme: Scheme, inputs: int, outputs: int, weights: int, item: int) -> int:
    """Bytes that a product with a quantized matrix takes and gives back; sizes are in elements.

    nf4 writes the matrix out ``item`` bytes wide; a single row takes a kernel that reads 4 bits and is not
    asked for here (``autograd/_functions.py``, ``matmul_4bit``). int8 makes the input a byte an element and
    gathers the product in int32 (``MatMul8bitLt``).
    """
    if scheme == "nf4":
        return weights * item
    return inputs + 4 * outputs if scheme == "int8" else 0


def kept_in_full(architecture: Architecture, scheme: Scheme) -> tuple[str, ...]:
    """What a quantized model holds in the model's own dtype, largest first."""
    if scheme == "none":
        return ()
    left = [
        t for t in architecture.tensors if not is_quantized(t, scheme) and t.kind in ("embedding", "linear")
    ]
    return tuple(t.name for t in sorted(left, key=lambda t: -t.numel * t.count))
