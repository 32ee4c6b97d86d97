"""Bytes of quantized weights: what each backend stores of a matrix, tensor by tensor, and what stays in full.

Sources: bitsandbytes 0.50 ``functional.py`` (``quantize_4bit``, ``QuantState``) and ``nn/modules.py``
(``Int8Params``); torchao 0.18 ``Int8Tensor``, ``IntxUnpackedToInt8Tensor`` and ``Int4OpaqueTensor``; our own
layout is that of ``packing``. LLM.int8 is arXiv:2208.07339, NF4 and double quantization are QLoRA's,
arXiv:2305.14314. A test holds every figure against the tensors that the layers hold, to the byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.quantization.placement import Placed, placed
from mem_gpt_cli.quantization.plan import Method, Plan, plan_of
from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from mem_gpt_cli.model import ModelSource

FP32 = 4
INT8 = 1
SECOND_BLOCK = 256
CODE_4BIT = 16
CODE_8BIT = 256
NAMED = 4
"""So many of the matrices left in full are named in a note."""
WEIGHTS_AT_ONCE = 2**22
"""Weights that our own products write out at once (``native.WEIGHTS_AT_ONCE``)."""


def matrix_parts(method: Method, rows: int, columns: int, item: int) -> tuple[int, ...]:
    """Bytes of each tensor that is stored of a matrix: its values first, then scales, zero points, tables.

    Args:
        method: how it is stored.
        rows: outputs; of an embedding tokens.
        columns: inputs; of an embedding its width.
        item: bytes an element of the model's dtype.
    """
    if method.scheme in ("nf4", "fp4"):
        return _four_bit_parts(method, rows * columns)
    if method.backend == "bitsandbytes":
        return rows * columns, rows * FP32
    if method.backend == "torchao":
        return _torchao_parts(method, rows, columns, item)
    padded, groups = native_layout(method, columns)
    codes = rows * padded // (2 if method.scheme == "int4" else 1)
    zeros = (rows * groups,) if method.mapping == "asymmetric" else ()
    return codes, rows * groups * item, *zeros


def native_layout(method: Method, columns: int) -> tuple[int, int]:
    """Columns in whole groups, and groups of a row, in our own layout (``packing.Layout``)."""
    group = max(2, min(method.group_size or columns, columns))
    if method.scheme == "int4":
        group += group % 2
    groups = -(-columns // group)
    return groups * group, groups


def rows_at_once(method: Method, columns: int) -> int:
    """Rows of a matrix that our own products write out together."""
    return max(1, WEIGHTS_AT_ONCE // native_layout(method, columns)[0])


def blocks_of(method: Method, weights: int) -> int:
    """Blocks of a 4-bit tensor; the last need not be full."""
    return -(-weights // (method.group_size or weights))


def _four_bit_parts(method: Method, weights: int) -> tuple[int, ...]:
    """Values, block maxima and tables of one 4-bit tensor.

    Plain: an fp32 maximum for every block (of 64 weights: 0.5 bit a weight) and the 16 values of the code.
    Double: the maxima have 8 bits, with an fp32 maximum for every 256 of them, their mean in fp32
    (``offset``) and a code of 256 values: with blocks of 64 0.127 bit a weight.
    """
    values, code, blocks = -(-weights // 2), CODE_4BIT * FP32, blocks_of(method, weights)
    if not method.double_quant:
        return values, blocks * FP32, code
    return values, blocks, -(-blocks // SECOND_BLOCK) * FP32, CODE_8BIT * FP32, FP32, code


def _torchao_parts(method: Method, rows: int, columns: int, item: int) -> tuple[int, ...]:
    """int8: symmetric has its scales in fp32, asymmetric in the model's dtype; both hold zero points."""
    if method.scheme == "int8":
        return rows * columns, rows * (FP32 if method.mapping == "symmetric" else item), rows
    return rows * columns // 2, columns // (method.group_size or columns) * rows * 2 * item


def stored_parts(one: Placed, item: int) -> tuple[int, ...]:
    """Bytes of each tensor that is stored of one of a model's weights; ``item`` is the width of its dtype."""
    if one.method is None:
        return (one.tensor.numel * (one.tensor.dtype_bytes or item),)
    return matrix_parts(one.method, one.rows, one.columns, item)


def weight_bytes(architecture: Architecture, plan: Plan, item: int, *, rounding: int = 1) -> int:
    """All weights and buffers of a model, tied ones once; ``rounding`` is the allocator's grain in bytes."""
    return sum(
        -(-part // rounding) * rounding
        for one in placed(architecture, plan)
        for part in stored_parts(one, item)
    )


def kept_in_full(architecture: Architecture, plan: Plan) -> tuple[str, ...]:
    """The matrices and tables that a quantized model holds in its own dtype, largest first.

    A name with ``*`` stands for every layer that has it, and one that ends in ``.*`` (``transformer.h.0.*``)
    for all matrices of a layer of which others are quantized elsewhere.
    """
    left: dict[str, int] = {}
    if plan.quantizes:
        matrices = [one for one in placed(architecture, plan) if one.tensor.kind in ("embedding", "linear")]
        differing = {one.tensor.name for one in matrices if one.method is not None}
        mixed = {one.layer for one in matrices if one.method is not None and one.layer is not None}
        for one in matrices:
            if one.method is None:
                name = one.tensor.name if one.tensor.name not in differing else one.path
                if one.layer is not None and one.layer not in mixed and name == one.path:
                    name = f"{one.tensor.name.partition('*')[0]}{one.layer}.*"
                left[name] = left.get(name, 0) + one.tensor.numel
    return tuple(sorted(left, key=lambda name: -left[name]))


def kept_note(source: ModelSource, recipe: Recipe) -> tuple[str, ...]:
    """One sentence on what quantization leaves in full; every lens says it."""
    plan = plan_of(recipe)
    if not plan.quantizes:
        return ()
    try:
        architecture = source.architecture
    except UnsupportedError:  # trace and profile run models whose tensors are on no list
        return ()
    kept = [name.removesuffix(".weight") for name in kept_in_full(architecture, plan)]
    if not kept:
        return ()
    more = f" and {len(kept) - NAMED} others" if len(kept) > NAMED else ""
    return (f"quantization leaves {', '.join(kept[:NAMED])}{more}, norms and biases in {recipe.model.dtype}",)
