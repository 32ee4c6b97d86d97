"""Reduced-precision kernels are asked how much they take, because the processor decides it.

oneDNN's products and the packed copies of bf16 attention need scratch memory whose size depends on the
instruction set (AVX2, AVX-512, AMX) and on blocking heuristics. So the dry run notes each distinct call, and
when it is over runs each of them once, on zeros, under the allocator's record. Products too large for that
are left out: beside their operands their scratch is small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

from mem_gpt_cli.ledger import EventLog
from mem_gpt_cli.ledger.allocator import record_allocator

aten = torch.ops.aten
PROBED = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    }
)
MOST_FLOPS = 4e9
MOST_BYTES = 256 * 2**20
_MARK = 77_777


class Like(NamedTuple):
    """A tensor by its outside."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Call(NamedTuple):
    """One distinct call of an operator; tensors stand as ``Like``."""

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]


class Probe:
    """Notes calls during a fake run; answers them after it."""

    def __init__(self) -> None:
        self._calls: dict[Call, list[int]] = defaultdict(list)
        self.too_large = 0

    def wants(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether the size of this call's scratch is the processor's secret."""
        return func in PROBED and any(
            isinstance(a, torch.Tensor) and a.dtype in (torch.bfloat16, torch.float16) for a in args
        )

    def note(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], storage: int) -> None:
        """Remember the call; ``storage`` is the number that its scratch got in the log."""
        call = Call(func, _outside(args), tuple(sorted(_outside(dict(kwargs)).items())))
        self._calls[call].append(storage)

    def answer(self, log: EventLog) -> None:
        """Run each noted call once and write the size of its scratch into the log."""
        small = [call for call in self._calls if _is_small(call)]
        self.too_large = len(self._calls) - len(small)
        if not small:
            return
        for call, nbytes in zip(small, scratch(small), strict=True):
            for storage in self._calls[call]:
                log.storage_bytes[storage] = nbytes


def scratch(calls: list[Call]) -> list[int]:
    """Bytes that each call's kernel takes at most beyond its operands and results."""
    results: list[int] = []
    with torch.no_grad(), record_allocator() as record:
        for call in calls:
            args, kwargs = _real(call.args), _real(dict(call.kwargs))
            mark = torch.empty(_MARK, dtype=torch.uint8)
            out = call.func(*args, **kwargs)
            results.append(_storage_bytes(out))
            del mark, out, args, kwargs
    peaks: list[int] = []
    live = peak = 0
    counting = False
    for event in record.events:
        if event.nbytes == _MARK:
            counting, live, peak = True, 0, 0
        elif event.nbytes == -_MARK and counting:
            peaks.append(peak)
            counting = False
        elif counting:
            live += event.nbytes
            peak = max(peak, live)
    return [max(0, peak - result) for peak, result in zip(peaks, results, strict=True)]


def _outside(value: Any) -> Any:
    def of(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return Like(tuple(leaf.shape), tuple(leaf.stride()), leaf.dtype)

    return tree_map(of, value, is_leaf=lambda leaf: isinstance(leaf, torch.Tensor))


def _real(value: Any) -> Any:
    def of(leaf: Any) -> Any:
        return torch.empty_strided(*leaf[:2], dtype=leaf.dtype).zero_() if isinstance(leaf, Like) else leaf

    return tree_map(of, value, is_leaf=lambda leaf: isinstance(leaf, Like))


def _storage_bytes(value: Any) -> int:
    storages = {t.untyped_storage()._cdata: t for t in tree_leaves(value) if isinstance(t, torch.Tensor)}
    return sum(t.untyped_storage().nbytes() for t in storages.values())


def _is_small(call: Call) -> bool:
    likes = [
        leaf
        for leaf in tree_leaves(call.args, is_leaf=lambda x: isinstance(x, Like))
        if isinstance(leaf, Like)
    ]
    nbytes = flops = 0
    for like in likes:
        numel = 1
        for size in like.shape:
            numel *= size
        nbytes += numel * like.dtype.itemsize
    first, last = likes[-2], likes[-1]
    if call.func in (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default):
        rows = 1
        for size in first.shape:
            rows *= size
        flops = 2 * rows * last.shape[-1]
    else:
        query, key = likes[0].shape, likes[1].shape
        flops = 10 * query[0] * query[1] * query[2] * key[2] * query[3]
    return nbytes <= MOST_BYTES and flops <= MOST_FLOPS
