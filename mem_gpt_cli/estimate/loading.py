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
from mem_gpt_cli.quantization.placement import Placed, modules, transposed
from mem_gpt_cli.quantization.plan import plan_of
from mem_gpt_cli.quantization.quantizing import buffers, stored_already
from mem_gpt_cli.quantization.storable import refuse_unmatched
from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from mem_gpt_cli.estimate.cuda import CudaKernels


def load(
    ledger: Ledger,
    architecture: Architecture,
    recipe: Recipe,
    item: int,
    cuda: CudaKernels | None,
    *,
    packed: bool = False,
) -> Sequence[Storage]:
    """Book all weights and buffers; ``item`` is the width of the model's dtype.

    ``packed`` weights are quantized already in the folder that they come from.

    Raises:
        RecipeError: for an override whose pattern matches no matrix.
        UnsupportedError: for a matrix that its backend cannot hold.
    """
    plan = plan_of(recipe)
    if (packed or not plan.quantizes) and not cuda:
        return [_held(ledger, cost.weight_bytes(architecture, plan, item))]
    refuse_unmatched(tuple(modules(architecture)), plan, recipe, architecture.model_type)
    every = in_module_order(architecture, plan)
    weights = [
        _held(ledger, one.tensor.numel * (one.tensor.dtype_bytes or item))
        for one in every
        if one.method is None
    ]
    if packed:
        codes = (one for one in every if one.method is not None)
        return weights + [_held(ledger, nbytes) for one in codes for nbytes in cost.stored_parts(one, item)]
    turns = Turns(ledger, architecture, recipe, item)
    for one in every:
        if one.method is not None:
            weights += turns.take(one)
    weights += turns.end()
    ledger.module = ""
    return weights


class Turns:
    """The matrices that are quantized, each at the turn of the last module that holds it."""

    def __init__(self, ledger: Ledger, architecture: Architecture, recipe: Recipe, item: int) -> None:
        self.ledger = ledger
        self.architecture = architecture
        self.recipe = recipe
        self.item = item
        self._tied: list[tuple[Placed, list[Storage]]] = []

    def take(self, one: Placed) -> Sequence[Storage]:
        """A matrix has its memory; its codes as well, unless a head shares it, whose turn comes last."""
        full = [self._workspace(one.tensor.numel * self.item, "empty")]
        if one.tensor.kind == "embedding" and self.architecture.tied_embeddings:
            self._tied.append((one, full))
            return []
        return self._quantized(one, full)

    def end(self) -> Sequence[Storage]:
        """The head's turn."""
        return [part for one, full in self._tied for part in self._quantized(one, full)]

    def _quantized(self, one: Placed, full: list[Storage]) -> Sequence[Storage]:
        """In full until the codes are there; ``Conv1D``'s is copied the other way round first."""
        assert one.method is not None
        self.ledger.module = one.module
        if transposed(self.architecture, one.tensor):
            full.append(self._workspace(one.tensor.numel * self.item, "clone"))
            del full[0]
        dtype, device = self.recipe.model.dtype, self.recipe.device.type
        taken = buffers(one.method, one.rows, one.columns, dtype, device)
        kept = stored_already(one.method, one.rows, one.columns, dtype, device)
        if device == "cpu":  # on a card each buffer is a block of its own, on a CPU their sum is what counts
            scratch = [
                _held(self.ledger, sum(kept)),
                self._workspace(sum(taken) - sum(kept), one.method.scheme),
            ]
        else:
            left = list(kept)
            scratch = []
            for nbytes in filter(None, taken):
                if nbytes in left:
                    left.remove(nbytes)
                    scratch.append(_held(self.ledger, nbytes))
                else:
                    scratch.append(self._workspace(nbytes, one.method.scheme))
        scratch.clear()
        return [_held(self.ledger, nbytes) for nbytes in cost.stored_parts(one, self.item)]

    def _workspace(self, nbytes: int, operation: str) -> Storage:
        """A matrix in full is there to be quantized; it is none of the model's weights."""
        return Storage(self.ledger, KERNEL_BUFFERS, nbytes, operation)


def _held(ledger: Ledger, nbytes: int) -> Storage:
    return Storage(ledger, WEIGHTS, nbytes, "empty")
