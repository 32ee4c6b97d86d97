"""The calls of attention whose kernel and allocations are recorded, and their tensors on any device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.attention import SDPBackend

Kernel = Literal["flash", "efficient", "cudnn", "math"]
BACKENDS: dict[str, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@dataclass(frozen=True)
class Call:
    """One call: sizes, dtype, and what else torch looks at.

    Args:
        size: of a head; ``value_size`` where values differ.
        by_heads: query, key and value lie as ``[batch, heads, length, size]``, else with the length first.
        gradient_by_heads: the same of the incoming gradient.
    """

    dtype: str
    batch: int
    heads: int
    key_heads: int
    size: int
    queries: int
    keys: int
    is_causal: bool = False
    mask: str = ""
    trains: bool = True
    mask_trains: bool = False
    dropout: float = 0.0
    value_size: int = 0
    by_heads: bool = False
    gradient_by_heads: bool = False
    shares_keys: bool = True

    def tensors(self, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value."""
        return (
            self._of(self.heads, self.queries, self.size, device),
            self._of(self.key_heads, self.keys, self.size, device),
            self._of(self.key_heads, self.keys, self.value_size or self.size, device),
        )

    def _of(self, heads: int, length: int, size: int, device: str) -> torch.Tensor:
        shape = (self.batch, heads, length, size) if self.by_heads else (self.batch, length, heads, size)
        tensor = torch.empty(shape, dtype=DTYPES[self.dtype], device=device, requires_grad=self.trains)
        return tensor if self.by_heads else tensor.transpose(1, 2)

    def mask_tensor(self, device: str) -> torch.Tensor | None:
        if not self.mask:
            return None
        shape = [self.queries, self.keys]
        if self.mask.endswith("4d"):
            shape = [self.batch, 1, *shape]
        dtype = torch.bool if self.mask.startswith("bool") else DTYPES[self.dtype]
        return torch.empty(shape, dtype=dtype, device=device, requires_grad=self.mask_trains)

    @property
    def groups(self) -> bool:
        return self.shares_keys and self.heads != self.key_heads


def choices() -> Iterator[Call]:
    """Which kernel runs: every condition of ``select_sdp_backend`` is met and missed."""
    lengths = ((1, 1), (1, 7), (33, 33), (8, 16))
    for dtype, size, key_heads, (queries, keys) in itertools.product(
        DTYPES, (1, 12, 64, 80, 128, 192, 200, 256, 264), (4, 2), lengths
    ):
        for is_causal, trains, dropout, mask in (
            (False, False, 0.0, ""), (True, True, 0.0, ""), (False, True, 0.1, ""), (True, True, 0.125, ""),
            (False, False, 0.0, "bool4d"), (False, True, 0.0, "added2d"),
        ):  # fmt: skip
            yield Call(dtype, 2, 4, key_heads, size, queries, keys, is_causal, mask, trains, dropout=dropout)
    for dtype in DTYPES:
        yield Call(dtype, 2, 4, 2, 64, 16, 16, shares_keys=False)
        yield Call(dtype, 2, 4, 4, 192, 16, 16, value_size=128)
        yield Call(dtype, 2, 4, 4, 64, 16, 16, mask="added4d", mask_trains=True)


def allocations(kernels: tuple[Kernel, ...]) -> Iterator[tuple[Kernel, Call]]:
    """What runs of a kernel allocate: lengths and heads on both sides of every rounding."""
    for kernel in kernels:
        yield from ((kernel, call) for call in _CALLS[kernel])


_TRAINED = [
    (12, 12, 64, 1000), (12, 12, 64, 1024), (8, 2, 128, 300), (4, 4, 80, 130), (4, 4, 96, 130),
    (4, 2, 256, 200), (2, 2, 32, 64), (4, 1, 192, 129),
]  # fmt: skip
_DECODED = [
    (1, 32, 8, 128, 1000), (1, 12, 12, 64, 901), (2, 32, 8, 64, 4000), (2, 4, 4, 256, 300),
    (4, 12, 12, 64, 1024), (1, 32, 8, 128, 4097), (1, 66, 66, 64, 1024), (1, 67, 67, 64, 1024),
    (1, 12, 12, 64, 512),
]  # fmt: skip


def _common(dtype: str, *, shares_keys: bool) -> list[Call]:
    calls = [
        Call(dtype, 2, heads, keys if shares_keys else heads, size, length, length, is_causal=True)
        for heads, keys, size, length in _TRAINED
    ]
    calls += [
        Call(dtype, batch, heads, keys if shares_keys else heads, size, 1, length, trains=False)
        for batch, heads, keys, size, length in _DECODED
    ]
    return [
        *calls,
        Call(dtype, 2, 12, 12, 64, 1000, 1000, is_causal=True, trains=False),
        Call(dtype, 2, 12, 12, 64, 1000, 1000, is_causal=True, dropout=0.125),
        Call(dtype, 2, 8, 8, 64, 200, 200, is_causal=True, by_heads=True),
        Call(dtype, 2, 8, 8, 64, 200, 200, is_causal=True, gradient_by_heads=True),
        Call(dtype, 1, 4, 4, 64, 16, 4000, trains=False),
    ]


def _masked(dtype: str) -> list[Call]:
    return [
        Call(dtype, 2, 4, 4, 64, 100, 100, mask="bool4d"),
        Call(dtype, 2, 4, 4, 64, 104, 104, mask="added4d"),
        Call(dtype, 2, 4, 4, 64, 100, 100, mask="added2d"),
    ]


_CALLS: dict[str, list[Call]] = {
    "flash": [*_common("bf16", shares_keys=True), Call("bf16", 2, 4, 4, 65, 130, 130, is_causal=True)],
    "efficient": [
        *_common("fp32", shares_keys=False),
        *_common("fp16", shares_keys=False),
        *_masked("fp32"),
        *_masked("fp16"),
        Call("fp32", 2, 4, 4, 64, 100, 100, mask="added4d", mask_trains=True),
        Call("fp16", 40, 12, 12, 256, 100, 100, is_causal=True),
        Call("fp16", 2, 4, 4, 64, 100, 100, value_size=128),
        Call("fp32", 1, 1, 1, 64, 100, 100),
    ],
    "cudnn": [*_common("bf16", shares_keys=True), *_masked("bf16")],
    "math": [
        *(Call(dtype, 2, 4, 2, 64, 100, 100, is_causal=True) for dtype in ("fp32", "bf16")),
        Call("bf16", 2, 4, 4, 64, 100, 100, mask="bool4d", dropout=0.1),
        Call("fp32", 2, 8, 2, 64, 1, 100, trains=False),
    ],
}
