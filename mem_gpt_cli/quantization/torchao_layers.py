"""torchao's linear layers: int8 by rows, and the packed int4 of its CPU kernel; ``Conv1D`` transposed once.

What is stored (torchao 0.18): symmetric int8 is ``Int8Tensor``: ``qdata`` ``[rows, columns]`` int8, ``scale``
``[rows, 1]`` fp32 and ``zero_point`` ``[rows, 1]`` int8, which holds zeros. Asymmetric int8 is
``IntxUnpackedToInt8Tensor``, because the product of ``Int8Tensor`` leaves the zero point out: the same with
``scale`` in the model's dtype. int4 is ``Int4OpaqueTensor``: ``qdata`` ``[rows, columns / 2]`` uint8 and
``scale_and_zero`` ``[columns / group, rows, 2]`` in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor
from torchao.quantization import PerRow
from torchao.quantization.quant_primitives import MappingType
from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8Tensor,
)

from mem_gpt_cli.quantization.layer import QuantizedLayer
from mem_gpt_cli.quantization.plan import Method


class TorchaoLinear(QuantizedLayer, torch.nn.Linear):
    """A linear layer whose weight is a tensor subclass of torchao's."""

    def __init__(
        self,
        method: Method,
        rows: int,
        columns: int,
        bias: torch.nn.Parameter | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(columns, rows, bias=False, device="meta", dtype=dtype)
        self.method, self.dtype = method, dtype
        self.register_parameter("bias", bias)

    @torch.no_grad()
    def quantize(self, matrix: Tensor) -> None:
        """See ``QuantizedLayer``."""
        if self.method.scheme == "int4" and matrix.device.type == "meta":
            self._hold(self._outside_of_int4())
        else:
            self._hold(_quantized(matrix.contiguous(), self.method))

    def parts(self) -> dict[str, Tensor]:
        """See ``QuantizedLayer``."""
        weight: Any = self.weight.data
        names, _ = weight.__tensor_flatten__()
        return {name: getattr(weight, name) for name in names}

    def put(self, parts: Mapping[str, Tensor]) -> None:
        """See ``QuantizedLayer``."""
        weight: Any = self.weight.data
        _, context = weight.__tensor_flatten__()
        self._hold(type(weight).__tensor_unflatten__(dict(parts), context, weight.shape, weight.stride()))

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """See ``QuantizedLayer``; int4, in its kernel's own layout, by the product with a unit matrix."""
        weight: Any = self.weight.data
        if self.method.scheme == "int4":
            unit = torch.eye(self.in_features, dtype=self.dtype)
            return torch.nn.functional.linear(unit, weight).t()
        values: Tensor = weight.dequantize()
        return values

    def _outside_of_int4(self) -> Tensor:
        """``Int4OpaqueTensor.from_hp`` wants a matrix on the CPU; this is what it makes, without values."""
        rows, columns, group = self.out_features, self.in_features, self.method.group_size or self.in_features
        packed = torch.empty(rows, columns // 2, dtype=torch.uint8, device="meta")
        scales = torch.empty(columns // group, rows, 2, dtype=self.dtype, device="meta")
        made: Tensor = Int4OpaqueTensor(packed, scales, [1, group], torch.Size((rows, columns)))
        return made

    def _hold(self, weight: Tensor) -> None:
        self.weight = torch.nn.Parameter(weight, requires_grad=False)


def _quantized(matrix: Tensor, method: Method) -> Tensor:
    if method.scheme == "int4":
        made: Tensor = Int4OpaqueTensor.from_hp(matrix, [1, method.group_size or matrix.shape[1]])
    elif method.mapping == "symmetric":
        made = Int8Tensor.from_hp(matrix, granularity=PerRow())
    else:
        made = IntxUnpackedToInt8Tensor.from_hp(
            matrix, (1, matrix.shape[1]), torch.int8, mapping_type=MappingType.ASYMMETRIC
        )
    return made
