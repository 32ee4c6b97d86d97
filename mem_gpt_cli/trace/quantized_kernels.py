"""What bitsandbytes' CPU operators allocate and free inside, beyond their results.

bitsandbytes composes most of them of torch's operators, within one operator of its own that the ledger sees
as a whole. Sources: bitsandbytes 0.50 ``backends/default/ops.py`` and ``backends/cpu/ops.py``. The sizes are
of what is alive at the highest moment; sizes that a row or a block has once are counted, single numbers not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch

aten = torch.ops.aten
Rule = Callable[[tuple[Any, ...], Mapping[str, Any], Any], int]

FP32 = 4
INT64 = 8


def gemm_4bit(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """The matrix written out in the input's dtype, and the block maxima in fp32 where they are quantized too.

    ``_gemm_4bit_default_impl``: one row or many are the same here.
    """
    weights, blocksize = prod(args[2]), args[4]
    nested = given(args, kwargs, 7, "absmax_8bit") is not None
    maxima = FP32 * -(-weights // blocksize) if nested else 0
    return int(weights * args[0].element_size() + maxima)


def quantize_4bit(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """The values in fp32, scaled to one, their codes in 32 bits and in 8, and half of these shifted.

    fp4 looks its codes up in a table of 64-bit integers, by indices made as wide first; that is before the
    two codes of a byte are put together.
    """
    weights, kind = args[0].numel(), args[2]
    copy = 0 if args[0].dtype == torch.float32 else FP32 * weights
    scaled, codes, half = FP32 * weights, 4 * weights, -(-weights // 2)
    if kind == "fp4":
        return int(copy + scaled + codes + 2 * INT64 * weights - half)
    return int(copy + scaled + codes + weights + half)


def int8_vectorwise_quant(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """The values in fp32, twice: as they are scaled (from a copy in fp32) and as they are rounded.

    The codes, a byte each, come after that.
    """
    values = args[0].numel()
    return int(2 * FP32 * values - values + FP32 * (values // args[0].shape[-1]))


def int8_scaled_mm(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """The product in int32 and its copy in fp32, the scales' product and the scaled product.

    Before that, on processors without AVX-512, both operands in fp32, with the product in fp32 and int32.
    """
    codes, weights = args[0], args[1]
    product = FP32 * result.numel()
    scaling = 4 * product
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        scaling = max(scaling, FP32 * (codes.numel() + weights.numel()) + 2 * product)
    return int(scaling - result.numel() * result.element_size())


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int, name: str) -> Any:
    """An argument of an operator's call, by its place or by its name; ``None`` where it is left out."""
    return args[index] if len(args) > index else kwargs.get(name)


def inner_product(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, tuple[Any, ...]] | None:
    """The product of torch's that a 4-bit product ends in, once the matrix is written out; else ``None``.

    ``torch.nn.functional.linear`` over rows: ``addmm`` with a bias, ``mm`` without.
    """
    if func._opname != "gemm_4bit":
        return None
    x, shape = args[0], args[2]
    rows = x.reshape(-1, shape[1])
    matrix = x.new_empty(tuple(shape)).t()
    bias = given(args, kwargs, 6, "bias")
    return (aten.mm.default, (rows, matrix)) if bias is None else (aten.addmm.default, (bias, rows, matrix))


BITSANDBYTES: dict[str, Rule] = {
    "gemm_4bit": gemm_4bit,
    "quantize_4bit": quantize_4bit,
    "int8_vectorwise_quant": int8_vectorwise_quant,
    "int8_scaled_mm": int8_scaled_mm,
}
"""By the operator's name; the operators are there once bitsandbytes is imported."""
