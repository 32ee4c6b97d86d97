"""Where torch composes an operator of others on CUDA than on the CPU.

Most composite operators are made of the same parts everywhere. The few that ask for the device in a way that
changes memory are composed here as on CUDA, for the time of a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mem_gpt_cli.trace.cuda.dispatcher import kernels

aten = torch.ops.aten


@contextmanager
def composites() -> Iterator[None]:
    """Compose operators as CUDA does, also in a checkpoint's recomputation. The blocks may be nested."""
    functions: dict[str, Callable[..., Any]] = {
        "softmax.int": softmax,
        "log_softmax.int": log_softmax,
        "dropout": dropout,
    }
    with kernels("CompositeImplicitAutograd", functions):
        yield


def softmax(self: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Half in and fp32 out is one kernel, without an fp32 copy of the input; bf16 is copied first.

    Source: ``softmax`` in ATen/native/SoftMax.cpp.
    """
    if _half_to_float(self, dtype):
        return aten._softmax.default(self, dim, True)  # type: ignore[no-any-return]
    return aten._softmax.default(_converted(self, dtype), dim, False)  # type: ignore[no-any-return]


def log_softmax(self: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """As ``softmax``. Source: ``log_softmax`` in ATen/native/SoftMax.cpp."""
    if _half_to_float(self, dtype):
        return aten._log_softmax.default(self, dim, True)  # type: ignore[no-any-return]
    return aten._log_softmax.default(_converted(self, dtype), dim, False)  # type: ignore[no-any-return]


def dropout(input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """One kernel that keeps a mask of booleans, where the CPU multiplies by a mask of the input's dtype.

    Source: ``dropout`` and ``is_fused_kernel_acceptable`` in ATen/native/Dropout.cpp.
    """
    if train and 0 < p < 1 and input.numel() > 0:
        return aten.native_dropout.default(input, p, train)[0]  # type: ignore[no-any-return]
    if not train or p == 0 or input.numel() == 0:
        return input
    return input.mul(torch.zeros((), dtype=input.dtype, device=input.device))


def _half_to_float(tensor: torch.Tensor, dtype: torch.dtype | None) -> bool:
    return tensor.dtype == torch.float16 and dtype == torch.float32


def _converted(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor if dtype is None else tensor.to(dtype)
