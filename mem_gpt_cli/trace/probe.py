"""Reduced-precision kernels are asked how much they take, because the processor decides it.

oneDNN's products and the packed copies of bf16 attention need scratch memory whose size depends on the
instruction set (AVX2, AVX-512, AMX) and on blocking heuristics: it can be larger than the result. So the dry
run notes each distinct call, and when it is over runs each of them once, on zeros, under the allocator's
record, the small ones first, for as long as ``MOST_SECONDS``. What is left then is counted in a warning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

from mem_gpt_cli.ledger import EventLog
from mem_gpt_cli.ledger.allocator import AllocatorTrace, record_allocator

aten = torch.ops.aten
PRODUCTS = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default})
ATTENTION = frozenset(
    {
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    }
)
MOST_SECONDS = 2.0
"""Time that asking may take in all."""
MOST_BYTES = 2**30
"""Operands and result of one call, which are really allocated for asking."""
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
        return (func in PRODUCTS or func in ATTENTION) and any(
            isinstance(a, torch.Tensor) and a.dtype in (torch.bfloat16, torch.float16) for a in args
        )

    def note(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], storage: int) -> None:
        """Remember the call; ``storage`` is the number that its scratch got in the log."""
        call = Call(func, _outside(args), tuple(sorted(_outside(dict(kwargs)).items())))
        self._calls[call].append(storage)

    def answer(self, log: EventLog) -> None:
        """Run each noted call once and write the size of its scratch into the log."""
        measured = scratch(sorted(filter(_fits, self._calls), key=_flops), MOST_SECONDS)
        self.too_large = len(self._calls) - len(measured)
        for call, nbytes in measured.items():
            for storage in self._calls[call]:
                log.storage_bytes[storage] = nbytes


def scratch(calls: Iterable[Call], seconds: float) -> dict[Call, int]:
    """Bytes that each call's kernel takes at most beyond its operands and results.

    Stops before a call that would probably outlast ``seconds``, told by the speed of those before it.
    """
    results: dict[Call, int] = {}
    start = last = perf_counter()
    flops_per_s = float("inf")
    with torch.no_grad(), record_allocator() as record:
        for call in calls:
            if last - start + _flops(call) / flops_per_s > seconds:
                break
            args, kwargs = _real(call.args), _real(dict(call.kwargs))
            mark = torch.empty(_MARK, dtype=torch.uint8)
            begun = perf_counter()
            out = call.func(*args, **kwargs)
            last = perf_counter()
            flops_per_s = max(1.0, _flops(call)) / max(1e-6, last - begun)
            results[call] = _storage_bytes(out)
            del mark, out, args, kwargs
    peaks = _peaks_between_marks(record)
    return {call: max(0, peak - result) for (call, result), peak in zip(results.items(), peaks, strict=True)}


def _peaks_between_marks(record: AllocatorTrace) -> list[int]:
    """The most that was live at once, above the level at its beginning, while each mark was."""
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
    return peaks


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


def _likes(call: Call) -> list[Like]:
    leaves = tree_leaves(call.args, is_leaf=lambda leaf: isinstance(leaf, Like))
    return [leaf for leaf in leaves if isinstance(leaf, Like)]


def _fits(call: Call) -> bool:
    """Whether the operands are small enough to be allocated for asking."""
    return sum(prod(like.shape) * like.dtype.itemsize for like in _likes(call)) <= MOST_BYTES


def _flops(call: Call) -> float:
    """Multiplications and additions of a call, roughly for attention."""
    likes = _likes(call)
    if call.func in ATTENTION:
        # Forward takes query, key, value; backward takes the gradient before them.
        backward = call.func is aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        query, key = likes[backward].shape, likes[backward + 1].shape
        return 10.0 * prod(query) * key[2]
    first, last = likes[-2], likes[-1]
    return 2.0 * prod(first.shape) * last.shape[-1]
