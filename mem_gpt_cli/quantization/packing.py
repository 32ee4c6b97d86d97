"""Integers of 4 and 8 bits in bytes: from a matrix to codes and back.

Layout of one matrix of ``rows`` by ``columns`` (outputs by inputs; of an embedding, tokens by width; GPT-2's
``Conv1D`` is transposed to that when it is quantized):

- ``group``: weights of one row that share a scale; ``None`` in a recipe is the whole row. It is never wider
  than a row, two at least, and in 4 bits even (an odd one is rounded up), so that no byte holds two groups.
- ``padded``: ``columns`` rounded up to whole groups, with zeros.
- ``codes``: ``[rows, padded]`` int8, or ``[rows, padded / 2]`` uint8 with the even column in the low half of
  a byte and the odd one in the high half.
- ``scale``: ``[rows, padded / group]`` in the model's own dtype. The codes are chosen for the scale as it is
  stored, so that its rounding costs nothing but at the ends of the range.
- ``zero``: ``[rows, padded / group]`` int8, asymmetric alone.

Values: ``(code - zero) * scale``, with codes from -128 to 127 or, in 4 bits, from 0 to 15; symmetric 4-bit
codes are stored with 8 added, and ``zero`` is 0. Scales and zero points are chosen, and codes made, by
torchao's affine primitives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)

from mem_gpt_cli.quantization.plan import Method

_MIDDLE = 8
"""What is added to a symmetric 4-bit code, -8 to 7, to store it without a sign."""


@dataclass(frozen=True)
class Layout:
    """How a matrix lies in memory; see the module's docstring."""

    bits: int
    symmetric: bool
    group: int
    rows: int
    columns: int

    @classmethod
    def of(cls, method: Method, rows: int, columns: int) -> Layout:
        """The layout of a native method for a matrix of that size."""
        bits = 4 if method.scheme == "int4" else 8
        group = max(2, min(method.group_size or columns, columns))
        if bits == 4:
            group += group % 2
        return cls(bits, method.mapping == "symmetric", group, rows, columns)

    @property
    def padded(self) -> int:
        """Columns in whole groups."""
        return -(-self.columns // self.group) * self.group

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.padded // self.group

    @property
    def code_range(self) -> tuple[int, int]:
        """The lowest and the highest code, before a symmetric 4-bit one is shifted to be stored."""
        if self.bits == 8:
            return -128, 127
        return (-8, 7) if self.symmetric else (0, 15)


class Packed(NamedTuple):
    """The stored tensors of one matrix, or of some of its rows."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None


def pack(matrix: torch.Tensor, layout: Layout) -> Packed:
    """Quantize ``[rows, columns]``."""
    if layout.padded != layout.columns:
        matrix = torch.nn.functional.pad(matrix, (0, layout.padded - layout.columns))
    matrix = matrix.contiguous()
    low, high = layout.code_range
    block = (1, layout.group)
    scale, zero = choose_qparams_affine(
        matrix,
        MappingType.SYMMETRIC if layout.symmetric else MappingType.ASYMMETRIC,
        block,
        torch.int8,
        low,
        high,
        scale_dtype=matrix.dtype,
        zero_point_dtype=torch.int8,
    )
    scale, zero = scale.view(-1, layout.groups), zero.view(-1, layout.groups)
    codes = quantize_affine(matrix, block, scale, zero, torch.int8, low, high)
    if layout.bits == 4:
        codes = _two_a_byte(codes.add_(_MIDDLE) if layout.symmetric else codes)
    return Packed(codes, scale, None if layout.symmetric else zero)


def unpack(packed: Packed, layout: Layout) -> torch.Tensor:
    """``[rows, columns]`` in the scales' dtype; a view of ``[rows, padded]``."""
    codes = packed.codes
    if layout.bits == 4:
        codes = _one_a_byte(codes)
        if layout.symmetric:
            codes.sub_(_MIDDLE)
    values: torch.Tensor = dequantize_affine(
        codes,
        (1, layout.group),
        packed.scale,
        packed.zero,
        torch.int8,
        *layout.code_range,
        output_dtype=packed.scale.dtype,
    )
    return values if layout.padded == layout.columns else values[:, : layout.columns]


def _two_a_byte(codes: torch.Tensor) -> torch.Tensor:
    """``[rows, padded]`` int8 from 0 to 15 as ``[rows, padded / 2]`` uint8."""
    codes = codes.view(torch.uint8)
    packed: torch.Tensor = (codes[:, 1::2] << 4).bitwise_or_(codes[:, ::2])
    return packed


def _one_a_byte(codes: torch.Tensor) -> torch.Tensor:
    """``[rows, padded / 2]`` uint8 as ``[rows, padded]`` int8 from 0 to 15."""
    halves = codes.new_empty((*codes.shape, 2))
    torch.bitwise_and(codes, 15, out=halves[..., 0])
    torch.bitwise_right_shift(codes, 4, out=halves[..., 1])
    return halves.view(codes.shape[0], -1).view(torch.int8)
