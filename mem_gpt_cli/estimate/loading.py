"""Loading walked on paper: what stays in full comes first, then one matrix after the other is quantized.

A matrix that is to be quantized is in full from its turn on until its codes are there (``workload/load.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mem_gpt_cli.estimate.books import KERNEL_BUFFERS, WEIGHTS, Ledger, Storage
from mem_gpt_cli.estimate.parameters import in_module_order
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.quantization import cost
from mem_gpt_cli.quantization.placement import Placed, transposed
from mem_gpt_cli.quantization.plan import plan_of
from mem_gpt_cli.quantization.quantizing import buffers
from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from mem_gpt_cli.estimate.cuda import CudaKernels


def load(
    ledger: Ledger, architecture: Architecture, recipe: Recipe, item: int, cuda: CudaKernels | None
) -> Sequence[Storage]:
    """Book all weights and buffers; ``item`` is the width of the model's dtype.

    Raises:
        UnsupportedError: for a matrix that its backend cannot hold.
    """
    plan = plan_of(recipe)
    if not plan.quantizes and not cuda:
        return [_held(ledger, cost.weight_bytes(architecture, plan, item))]
    every = in_module_order(architecture, plan)
    weights = [
        _held(ledger, one.tensor.numel * (one.tensor.dtype_bytes or item)) for one in every if not one.method
    ]
    for one in every:
        if one.method is not None:
            weights += _quantized(ledger, architecture, one, item, recipe)
    ledger.module = ""
    return weights


def _held(ledger: Ledger, nbytes: int) -> Storage:
    return Storage(ledger, WEIGHTS, nbytes, "empty")


def _quantized(
    ledger: Ledger, architecture: Architecture, one: Placed, item: int, recipe: Recipe
) -> Sequence[Storage]:
    """One matrix, in full until its codes are there; ``Conv1D``'s is copied the other way round first."""
    assert one.method is not None
    ledger.module = one.module
    full = _held(ledger, one.tensor.numel * item)
    if transposed(architecture, one.tensor):
        full = _held(ledger, one.tensor.numel * item)
    taken = buffers(one.method, one.rows, one.columns, recipe.model.dtype, recipe.device.type)
    scratch = [Storage(ledger, KERNEL_BUFFERS, nbytes, one.method.scheme) for nbytes in taken]
    scratch.clear()
    stored = [_held(ledger, nbytes) for nbytes in cost.stored_parts(one, item)]
    del full
    return stored
