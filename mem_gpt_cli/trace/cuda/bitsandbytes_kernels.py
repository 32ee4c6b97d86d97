"""What bitsandbytes' CUDA operators allocate and free inside, and in which order their results are made.

A dry run meets bitsandbytes' operators as a whole: their shape functions say what comes out, and these rules
what is taken on the way, where CUDA's kernels go another way than those of the CPU (``quantized_kernels``).
The products that end in torch's own (``torch.nn.functional.linear``) take cuBLAS's workspace with them, those
of int8 call cuBLASLt on their own, without one.

Sources: bitsandbytes 0.50 ``backends/cuda/ops.py``, ``backends/default/ops.py`` (``int8_scaled_mm``).
"""
# ruff: noqa: ARG001 - all rules have one signature, and few need all of it

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.bitsandbytes import reads_four_bits
from mem_gpt_cli.trace.cuda.kernels import Rule
from mem_gpt_cli.trace.quantized_kernels import given

FP32 = 4
FP16 = 2
_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def four_bit_product(
    gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> Sequence[int]:
    """The matrix written out in the input's dtype, after block maxima that are quantized too; or nothing.

    Few rows take a kernel that reads 4 bits, how few depends on the GPU and the shape. Source:
    bitsandbytes ``backends/cuda/ops.py`` (``gemm_4bit``, ``_dequant_linear_fallback``); torch's own product
    follows (ATen/native/Linear.cpp).
    """
    if fused(gpu, args):
        return []
    weights, block = prod(args[2]), args[4]
    maxima = FP32 * -(-weights // block) if given(args, kwargs, 7, "absmax_8bit") is not None else 0
    return [maxima, maxima, weights * args[0].element_size()]


def eight_bit_product(
    gpu: Gpu, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> Sequence[int]:
    """The product in int32, and in fp16 where the model is not; inputs that 4 does not divide in fp32.

    Source: bitsandbytes ``backends/cuda/ops.py`` (``_int8_linear_matmul_impl``, ``int8_mm_dequant``); torch's
    part of it is a conversion (ATen/native/TensorConversions.cpp).
    """
    codes, weights = args[:2]
    integers = FP32 * result.numel()
    if weights.shape[1] % 4:
        return [integers, FP32 * codes.numel(), FP32 * weights.numel(), integers]
    return [integers, 0 if result.dtype == torch.float16 else FP16 * result.numel()]


def fused(gpu: Gpu, args: tuple[Any, ...]) -> bool:
    """Whether a 4-bit product reads the 4 bits themselves, so that no product of torch's follows."""
    x, (outputs, inputs), block = args[0], args[2], args[4]
    return reads_four_bits(gpu, _NAMES[x.dtype], x.numel() // inputs, outputs, inputs, block)


RULES: dict[str, Rule] = {"gemm_4bit": four_bit_product, "int8_scaled_mm": eight_bit_product}
"""By the operator's name; the operators are there once bitsandbytes is imported."""
