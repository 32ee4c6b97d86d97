"""What optimizers' operators allocate and free inside on CPU, and where their code needs data.

bitsandbytes composes an update of torch's operators, within one operator of its own that the ledger sees as
a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.optim import _adafactor

from mem_gpt_cli.ledger import Ledger
from mem_gpt_cli.optimizers.bitsandbytes_steps import MAP_BYTES, RULES, SMALLEST_PAGED, update_bytes
from mem_gpt_cli.optimizers.galore_steps import svd_bytes
from mem_gpt_cli.recipe.schema import Recipe

aten = torch.ops.aten
Rule = Callable[[tuple[Any, ...], Mapping[str, Any], Any], int]


def update(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """Moments, gradient, weights and update in fp32: see ``update_bytes``."""
    parameter = args[2]
    return update_bytes(parameter.numel(), parameter.element_size())


def singular_vectors(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """A copy of the matrix with its columns together, the block that is transposed at once, and a status.

    What LAPACK works in is not torch's allocation. Source: ``svd_kernel`` in
    ATen/native/BatchLinearAlgebraKernel.cpp, ``copy_same_type_transpose_`` in ATen/native/Copy.cpp.
    """
    return svd_bytes(*args[0].shape)


BITSANDBYTES: dict[str, Rule] = {
    "optimizer_update_32bit": update,
    "optimizer_update_8bit_blockwise": update,
}
TORCH: dict[Any, Rule] = {aten._linalg_svd.default: singular_vectors}


@contextmanager
def optimizer_without_data(recipe: Recipe, ledger: Ledger) -> Iterator[None]:
    """Let optimizers run that read numbers, and page on CUDA as bitsandbytes would there."""
    section = recipe.optimizer
    with ExitStack() as stack:
        if recipe.task == "training" and section.name == "adafactor":
            stack.enter_context(_norms_of_one())
        if recipe.task == "training" and (section.name in RULES or section.bits == 8):
            from bitsandbytes import functional

            stack.enter_context(mock.patch.object(functional, "create_dynamic_map", _map_of_codes))
            if recipe.device.type == "cuda":
                stack.enter_context(paged_moments(ledger))
        yield


@contextmanager
def _norms_of_one() -> Iterator[None]:
    """Adafactor scales its step by the norms of weights and update, which it reads: here they are 1."""
    original = _adafactor._single_tensor_adafactor

    def single_tensor(*args: Any, **kwargs: Any) -> None:
        with mock.patch.object(torch.Tensor, "item", return_value=1.0):
            original(*args, **kwargs)

    with mock.patch.object(_adafactor, "_single_tensor_adafactor", single_tensor):
        yield


def _map_of_codes(signed: bool = True) -> torch.Tensor:  # noqa: ARG001
    """``create_dynamic_map``, whose 256 numbers are computed from each other."""
    return torch.empty(MAP_BYTES // 4)


@contextmanager
def paged_moments(ledger: Ledger) -> Iterator[None]:
    """A paged optimizer's moments of 100,000 elements and more are the driver's, not torch's.

    They are memory that CUDA's driver moves between the card and the host (``cudaMallocManaged``). Source:
    bitsandbytes 0.50 ``optim/optimizer.py`` (``get_state_buffer``), ``functional.py`` (``get_paged``); torch
    knows them as tensors of the host (``torch.frombuffer``, torch/csrc/utils/tensor_new.cpp).
    """
    from bitsandbytes.optim.optimizer import Optimizer8bit

    def get_state_buffer(self: Any, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if not self.is_paged or p.numel() < SMALLEST_PAGED:
            return torch.zeros_like(p, dtype=dtype)
        with ledger.paused():
            buffer = torch.zeros_like(p, dtype=dtype)
        ledger.keep_out(buffer)
        return buffer

    with mock.patch.object(Optimizer8bit, "get_state_buffer", get_state_buffer):
        yield
