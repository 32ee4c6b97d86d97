"""Layers that hold their matrix in integers of 4 or 8 bits and write it out for each product.

What is stored is ``packing``'s layout, to the byte: ``codes``, ``scale`` and, asymmetric, ``zero``, as
buffers of the layer; a bias stays what it was. A tied embedding and head hold the same three tensors.

What a product takes beside its result, with ``padded`` and ``group`` as in ``packing`` and ``item`` the bytes
of the model's dtype: rows are written out ``rows_at_once`` at a time, ``2**22 // padded`` but at least one,
and for those rows

- 4 bits: their codes, a byte each (``rows * padded`` bytes), for as long as they are written out;
- the codes in the model's dtype (``rows * padded * item``) and, symmetric, their product with the scales
  beside them (twice that in all); asymmetric takes the zero points and the difference on the way, of which
  no more than two such matrices live at once;
- after that one such matrix, while the product runs.

A matrix of several such pieces has its result allocated first and each piece's result copied into it.
Quantizing goes by the same pieces. Backward writes the matrix out again, in the same pieces. An embedding
unpacks the rows that are looked up, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mem_gpt_cli.quantization.layer import QuantizedLayer
from mem_gpt_cli.quantization.packing import Layout, Packed, pack, unpack
from mem_gpt_cli.quantization.plan import Method

WEIGHTS_AT_ONCE = 2**22
"""Weights written out at once: a head of 50,000 tokens would else be the peak of a small model."""


class _Native(QuantizedLayer, torch.nn.Module):
    """A matrix ``[rows, columns]`` as packed buffers."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, method: Method, rows: int, columns: int) -> None:
        super().__init__()
        self.method = method
        self.layout = Layout.of(method, rows, columns)
        self.register_buffer("codes", None)
        self.register_buffer("scale", None)
        self.register_buffer("zero", None)

    @torch.no_grad()
    def quantize(self, matrix: Tensor) -> None:
        """See ``QuantizedLayer``."""
        layout = self.layout
        step = rows_at_once(layout)
        if layout.rows <= step:
            self.codes, self.scale, self.zero = pack(matrix, layout)
            return
        first = pack(matrix[:step], layout)
        whole = [None if part is None else part.new_empty((layout.rows, part.shape[1])) for part in first]
        self.codes, self.scale, self.zero = whole  # type: ignore[assignment]
        for rows, part in _pieces(self._packed(), layout):
            for target, values in zip(part, pack(matrix[rows], layout), strict=True):
                if target is not None and values is not None:
                    target.copy_(values)

    def parts(self) -> dict[str, Tensor]:
        """See ``QuantizedLayer``."""
        parts = {"codes": self.codes, "scale": self.scale, "zero": self.zero}
        return {name: part for name, part in parts.items() if part is not None}

    def put(self, parts: Mapping[str, Tensor]) -> None:
        """See ``QuantizedLayer``."""
        self.codes, self.scale, self.zero = parts["codes"], parts["scale"], parts.get("zero")

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """See ``QuantizedLayer``."""
        return unpack(self._packed(), self.layout)

    @property
    def weight(self) -> Tensor:
        """The codes, for callers that ask a layer for its weight's device or rows."""
        return self.codes

    def _packed(self) -> Packed:
        return Packed(self.codes, self.scale, self.zero)


class NativeLinear(_Native):
    """``x @ matrix.T + bias``, for ``nn.Linear`` and, transposed once, for ``Conv1D``."""

    def __init__(self, method: Method, rows: int, columns: int, bias: torch.nn.Parameter | None) -> None:
        super().__init__(method, rows, columns)
        self.in_features, self.out_features = columns, rows
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        product: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, self.codes, self.scale, self.zero, self.bias, self.layout
        )
        return product


class NativeEmbedding(_Native):
    """A table of which the rows that are looked up are written out."""

    def __init__(self, method: Method, rows: int, columns: int, padding_idx: int | None = None) -> None:
        super().__init__(method, rows, columns)
        self.num_embeddings, self.embedding_dim, self.padding_idx = rows, columns, padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` to ``[..., embedding_dim]``."""
        flat = ids.reshape(-1)
        zero = None if self.zero is None else functional.embedding(flat, self.zero)
        chosen = Packed(functional.embedding(flat, self.codes), functional.embedding(flat, self.scale), zero)
        return unpack(chosen, self.layout).reshape(*ids.shape, self.layout.columns)


class _Product(torch.autograd.Function):
    """A product with a packed matrix, which is written out again for the gradient of the input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bias: Tensor | None,
        layout: Layout,
    ) -> Tensor:
        packed = Packed(codes, scale, zero)
        ctx.save_for_backward(*packed)
        ctx.layout, ctx.has_bias = layout, bias is not None
        x = x.to(scale.dtype)  # under autocast the input may be narrower than the model
        if layout.rows <= rows_at_once(layout):
            return functional.linear(x, unpack(packed, layout), bias)
        result = x.new_empty((*x.shape[:-1], layout.rows))
        for rows, part in _pieces(packed, layout):
            own_bias = None if bias is None else bias[rows]
            result[..., rows] = functional.linear(x, unpack(part, layout), own_bias)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        packed, layout = Packed(*ctx.saved_tensors), ctx.layout
        gradient = gradient.to(packed.scale.dtype)  # under autocast the product was narrower than the model
        of_input = of_bias = None
        if ctx.needs_input_grad[0]:
            for rows, part in _pieces(packed, layout):
                own = gradient[..., rows] @ unpack(part, layout)
                of_input = own if of_input is None else of_input.add_(own)
        if ctx.has_bias and ctx.needs_input_grad[4]:
            of_bias = gradient.reshape(-1, layout.rows).sum(0)
        return of_input, None, None, None, of_bias, None


def rows_at_once(layout: Layout) -> int:
    """Rows that a product writes out together."""
    return max(1, WEIGHTS_AT_ONCE // layout.padded)


def _pieces(packed: Packed, layout: Layout) -> Iterator[tuple[slice, Packed]]:
    step = rows_at_once(layout)
    for first in range(0, layout.rows, step):
        rows = slice(first, min(first + step, layout.rows))
        zero = None if packed.zero is None else packed.zero[rows]
        yield rows, Packed(packed.codes[rows], packed.scale[rows], zero)
