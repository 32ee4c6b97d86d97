"""Where autograd adds up gradients in place, although somebody watches.

Two gradients of one tensor are added by autograd's engine: in place where nothing else holds the first one's
memory, but never while a dispatch mode is active, because a mode might see more in a tensor than its memory.
The ledger sees no more. So it takes the engine's sum and does in place what the unwatched run would.

Source: ``accumulate`` and ``can_accumulate_inplace`` in torch/csrc/autograd/input_buffer.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class References(NamedTuple):
    """How many hold a tensor, and how many its storage, as seen from within a dispatch mode."""

    tensor: int
    storage: int


def sums_in_place(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call is the engine's sum of two gradients, of which the first may be overwritten."""
    if func is not aten.add.Tensor or kwargs or torch.is_grad_enabled():
        return False
    if torch._C._current_graph_task_id() == -1:
        return False
    held, added = args[:2]
    if len(args) != 2 or not isinstance(added, torch.Tensor) or held.shape != added.shape:
        return False
    plain = held.layout is torch.strided and held.dtype == added.dtype
    return (
        plain
        and references(held) == held_by_the_engine_alone()
        and is_non_overlapping_and_dense_or_false(held)
    )


def references(tensor: torch.Tensor) -> References:
    """The references to a tensor and its storage."""
    storage = tensor.untyped_storage()
    holders = tensor._use_count()  # type: ignore[attr-defined]
    return References(holders, torch._C._storage_Use_Count(storage._cdata))


@cache
def held_by_the_engine_alone() -> References:
    """The references to a gradient that the engine alone holds: its own, and those that the dispatch adds.

    It is found by trial, once a process; the first call must not come from within backward.
    """
    seen: list[References] = []

    class Sums(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            if func is aten.add.Tensor and torch._C._current_graph_task_id() != -1:
                seen.append(references(args[0]))
            return func(*args, **(kwargs or {}))

    leaf = torch.ones(2, requires_grad=True)
    with Sums(), torch.enable_grad():  # type: ignore[no-untyped-call]
        twice = leaf * 1
        forked = torch.stack([twice * 2, twice * 3])
        torch.autograd.grad(forked, leaf, torch.ones_like(forked))
    return seen[0]
