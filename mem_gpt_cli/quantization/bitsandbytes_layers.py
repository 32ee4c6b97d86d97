"""bitsandbytes' linear layers: nf4 and fp4 in blocks, int8 by rows; ``Conv1D`` transposed once.

What is stored (bitsandbytes 0.50, ``functional.py``): 4 bits: ``weight`` ``[weights / 2, 1]`` uint8; without
double quantization ``absmax`` fp32, one a block; with it ``absmax`` uint8, ``nested_absmax`` fp32, one for
256 blocks, ``nested_code`` of 256 fp32 and the scalar ``offset``; ``code`` of 16 fp32. int8: ``weight``
``[rows, columns]`` int8 and ``SCB``, fp32, one a row.

Products are bitsandbytes' own, in the model's dtype. Two of its ways are not taken: the repacking of 4-bit
weights at the first product on processors with AVX512-BF16, which would compute an fp32 model in bf16, and
int8's threshold, above which columns of the input are computed in half precision, because what that takes
depends on the data.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import bitsandbytes
import torch
from bitsandbytes import functional
from bitsandbytes.functional import QuantState
from torch import Tensor

from mem_gpt_cli.quantization.layer import QuantizedLayer, parameter
from mem_gpt_cli.quantization.plan import Method

_SECOND_BLOCK = 256
"""Block maxima that share a maximum of their own (``quantize_4bit``)."""


class _NoCastRemark(logging.Filter):
    """bitsandbytes says at each int8 product that its input is cast to half precision."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "inputs will be cast" not in record.getMessage()


logging.getLogger("bitsandbytes.autograd._functions").addFilter(_NoCastRemark())


@cache
def fill_tables() -> None:
    """Have bitsandbytes make the tables that it keeps for the process, from numbers and not on ``meta``."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily(), torch.device("cpu"):
        matrix = torch.zeros(1, 64)
        for kind in ("nf4", "fp4"):
            functional.quantize_4bit(matrix, quant_type=kind, compress_statistics=True)


class FourBitLinear(QuantizedLayer, bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """nf4 or fp4, its scales in full or quantized too."""

    def __init__(
        self,
        method: Method,
        rows: int,
        columns: int,
        bias: torch.nn.Parameter | None,
        dtype: torch.dtype,
    ) -> None:
        fill_tables()
        super().__init__(
            columns,
            rows,
            bias=False,
            compute_dtype=dtype,
            compress_statistics=method.double_quant,
            quant_type=method.scheme,
            device="meta",
        )
        self.method, self.dtype = method, dtype
        self.register_parameter("bias", bias)
        self.support_avx512bf16_for_cpu = False

    @torch.no_grad()
    def quantize(self, matrix: Tensor) -> None:
        """See ``QuantizedLayer``."""
        data, state = functional.quantize_4bit(
            matrix,
            blocksize=self.method.group_size,
            compress_statistics=self.method.double_quant,
            quant_type=self.method.scheme,
        )
        self._hold(data, state)

    def parts(self) -> dict[str, Tensor]:
        """See ``QuantizedLayer``."""
        state = self.quant_state
        parts = {"weight": self.weight.data, "absmax": state.absmax, "code": state.code}
        if state.nested:
            parts["nested_absmax"] = state.state2.absmax
            parts["nested_code"] = state.state2.code
            parts["offset"] = state.offset
        return parts

    def put(self, parts: Mapping[str, Tensor]) -> None:
        """See ``QuantizedLayer``."""
        second = None
        if "nested_absmax" in parts:
            second = QuantState(
                absmax=parts["nested_absmax"],
                code=parts["nested_code"],
                blocksize=_SECOND_BLOCK,
                dtype=torch.float32,
            )
        state = QuantState(
            absmax=parts["absmax"],
            shape=torch.Size((self.out_features, self.in_features)),
            code=parts["code"],
            blocksize=self.method.group_size,
            quant_type=self.method.scheme,
            dtype=self.dtype,
            offset=parts.get("offset"),
            state2=second,
        )
        self._hold(parts["weight"], state)

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """See ``QuantizedLayer``."""
        values: Tensor = functional.dequantize_4bit(self.weight.data, self.quant_state)
        return values

    def _hold(self, data: Tensor, state: QuantState) -> None:
        self.quant_state = state
        self.weight = parameter(
            data,
            bitsandbytes.nn.Params4bit,
            quant_state=state,
            blocksize=state.blocksize,
            compress_statistics=self.method.double_quant,
            quant_type=self.method.scheme,
            bnb_quantized=True,
            module=self,
        )


class EightBitLinear(QuantizedLayer, bitsandbytes.nn.Linear8bitLt):  # type: ignore[misc]
    """LLM.int8 without its threshold: inputs are rounded to int8 row by row, as the weights are."""

    def __init__(
        self,
        method: Method,
        rows: int,
        columns: int,
        bias: torch.nn.Parameter | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(columns, rows, bias=False, has_fp16_weights=False, threshold=0.0, device="meta")
        self.method, self.dtype = method, dtype
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``; a gradient flows by ``_EightBitProduct``."""
        self.state.is_training = self.training
        frozen = self.bias is None or not self.bias.requires_grad
        if frozen and (self.training or (torch.is_grad_enabled() and x.requires_grad)):
            product: Tensor = _EightBitProduct.apply(x, self)  # type: ignore[no-untyped-call]
            return product
        return super().forward(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def quantize(self, matrix: Tensor) -> None:
        """See ``QuantizedLayer``."""
        weight, scales, _ = functional.int8_vectorwise_quant(matrix.to(torch.float16))
        self.put({"weight": weight, "SCB": scales})

    def parts(self) -> dict[str, Tensor]:
        """See ``QuantizedLayer``."""
        return {"weight": self.weight.data, "SCB": self.state.SCB}

    def put(self, parts: Mapping[str, Tensor]) -> None:
        """See ``QuantizedLayer``."""
        self.state.CB, self.state.SCB = parts["weight"], parts["SCB"]
        self.weight = parameter(
            parts["weight"], bitsandbytes.nn.Int8Params, has_fp16_weights=False, CB=None, SCB=None
        )

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """See ``QuantizedLayer``."""
        values: Tensor = functional.int8_vectorwise_dequant(self.weight.data, self.state.SCB)
        return values.to(self.dtype)


class _EightBitProduct(torch.autograd.Function):
    """bitsandbytes' products for training, to the number, without the input that its own functions hold.

    ``MatMul8bitFp`` and ``MatMul8bitLt`` keep their input on the context, where neither checkpointing nor the
    end of backward lets go of it, though the gradient of the input needs the codes alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: EightBitLinear) -> Tensor:
        ctx.state, ctx.dtype = layer.state, x.dtype
        state, bias = layer.state, None if layer.bias is None else layer.bias.to(x.dtype)
        if layer.training and not rounds_inputs(x):
            return torch.nn.functional.linear(x, _written_out(state, x.dtype), bias)
        codes, scales, _ = functional.int8_vectorwise_quant(x.reshape(-1, x.shape[-1]).to(torch.float16))
        product: Tensor = torch.ops.bitsandbytes.int8_scaled_mm.default(
            codes, state.CB, scales, state.SCB, bias=bias, dtype=x.dtype
        )
        return product.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return torch.matmul(gradient.to(ctx.dtype), _written_out(ctx.state, ctx.dtype)), None


def rounds_inputs(x: Tensor) -> bool:
    """Whether a training product rounds its input to int8 too: not on the CPU (``bitsandbytes.matmul``)."""
    return x.device.type != "cpu"


def _written_out(state: Any, dtype: torch.dtype) -> Tensor:
    """The matrix, ``[rows, columns]``, as both of bitsandbytes' functions write it out."""
    values: Tensor = state.CB.to(dtype, copy=True).mul_(state.SCB.unsqueeze(1).mul(1.0 / 127.0))
    return values
