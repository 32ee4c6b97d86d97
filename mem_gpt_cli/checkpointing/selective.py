"""Which results a recomputed layer takes from its forward pass instead of computing them again.

``torch.utils.checkpoint.create_selective_checkpoint_contexts`` asks about each operator of a layer's forward
pass. Kept are

``attention``
    what the fused kernels return: output, log-sum-exp and what else backward reads. Attention written out in
    products (eager, and SDPA's math) has no such kernel: there the results of its two batched products,
    scores and weighted values, are kept, and the softmax between them runs again.
``products``
    the results of products with matrices of weights: dense, grouped by expert, or quantized.

A kernel that draws its dropout itself always runs again. If it did not, the random numbers after it would be
others than in the forward pass (a checkpoint restores the generator at its beginning only), and the gradients
wrong without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from mem_gpt_cli.checkpointing.cost import CHANGED_IN_PLACE
from mem_gpt_cli.checkpointing.plan import Kept
from mem_gpt_cli.errors import UnsupportedError

FUSED = frozenset(
    {
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "flash_attn::_flash_attn_forward",
        "flash_attn::_flash_attn_varlen_forward",
    }
)
"""Kernels that compute attention as one operator."""
OPERATORS: dict[Kept, frozenset[str]] = {
    "attention": FUSED | {"aten::bmm", "aten::baddbmm"},
    "products": frozenset(
        {
            "aten::mm",
            "aten::addmm",
            "aten::_grouped_mm",
            "bitsandbytes::gemm_4bit",
            "bitsandbytes::gemv_4bit",
            "bitsandbytes::int8_scaled_mm",
            "bitsandbytes::int8_mixed_scaled_mm",
        }
    ),
}
"""What each word of the recipe means, by the names of operators."""

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def contexts_of(keep: Collection[Kept]) -> Callable[[], Contexts]:
    """What ``torch.utils.checkpoint`` takes as ``context_fn``: a pair for each checkpoint."""
    names = frozenset[str]().union(*(OPERATORS[word] for word in keep))
    return partial(_contexts, names)


def _contexts(names: frozenset[str]) -> Contexts:
    return create_selective_checkpoint_contexts(Policy(names))  # type: ignore[no-any-return]


class Policy:
    """Says of each operator of one checkpoint whether its result is kept."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._storages: set[int] = set()

    def __call__(self, context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        """Called by torch after each operator of the forward pass, with its arguments.

        torch 2.11 calls it before the operator, and in backward again. Then results are not known here, and
        torch itself fails in backward where one that is kept was changed.

        Raises:
            UnsupportedError: where a layer's code changes a result that is kept.
        """
        schema = operator._schema
        if schema.is_mutable and self._storages and _storage(args) in self._storages:
            raise UnsupportedError(CHANGED_IN_PLACE)
        if schema.name not in self._names or _argument(operator, "dropout_p", args, kwargs):
            return CheckpointPolicy.PREFER_RECOMPUTE
        out = getattr(context, "op_output", None)
        if out is not None:
            self._storages.add(_storage(out if isinstance(out, tuple | list) else (out,)))
        return CheckpointPolicy.MUST_SAVE


def _storage(tensors: Any) -> int:
    """The storage of the first of some tensors; 0 where that is none."""
    first = tensors[0] if tensors else None
    return first.untyped_storage()._cdata if isinstance(first, torch.Tensor) else 0


def _argument(operator: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operator's argument, given by place or by name, or its default; ``None`` where it has no such."""
    if name in kwargs:
        return kwargs[name]
    for place, argument in enumerate(operator._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else argument.default_value
    return None
