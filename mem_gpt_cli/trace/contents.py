"""The contents of fake tensors, where they follow from constants or from an invented choice.

A fake tensor has a shape and no data. Integers and truth values that are computed from nothing unknown can
still be known: their real counterpart is kept beside the fake tensor, on the CPU, and every operator on
known tensors is run on both. Floating-point results are kept only while they are small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
_MOST_INTEGERS = 2**27
_MOST_FLOATS = 2**22
_MOST_CONSTANT_FLOATS = 2**18  # a mask made of ones is asked about, a state made of zeros is not
_ARANGES = {aten.arange.default, aten.arange.start, aten.arange.start_step}
_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
_ONES = {aten.ones.default, aten.ones_like.default, aten.new_ones.default}
_FULLS = {aten.full.default, aten.full_like.default, aten.new_full.default}
CONSTANTS = _ARANGES | _ZEROS | _ONES | _FULLS | {aten.scalar_tensor.default}
"""Operators whose result is known whatever their tensor arguments hold."""


@dataclass
class Memory:
    """What the aliases of one storage share: whether its contents are known, and invented."""

    storage: int
    invented: bool = False
    known: bool = True


@dataclass(frozen=True)
class Contents:
    """What a fake tensor would hold."""

    real: torch.Tensor
    memory: Memory


def contents(tensor: torch.Tensor) -> Contents | None:
    """The contents of a tensor where they are known: kept here, kept by torch, or in a real tensor."""
    kept: Contents | None = tensor.__dict__.get("_contents")
    if kept is not None:
        if not kept.memory.known:
            del tensor._contents  # type: ignore[attr-defined]
            return None
        return kept
    real = tensor.constant if isinstance(tensor, FakeTensor) else tensor
    if real is None or real.device.type == "meta":
        return None
    return Contents(real, Memory(_storage(real)))


def keep(real: Any, fake: Any, sources: Sequence[Memory] = (), invented: bool = False) -> None:
    """Keep the contents of a result beside it.

    Args:
        real: the contents: a tensor, several in the structure of ``fake``, or ``None`` where not known.
        fake: the result, likewise.
        sources: the memories of the operator's inputs; a result that is a view shares one of them.
        invented: the contents are a choice; what comes of invented sources is invented as well.
    """
    if isinstance(fake, (tuple, list)) and isinstance(real, (tuple, list)):
        for part, result in zip(real, fake, strict=True):
            keep(part, result, sources, invented)
    elif isinstance(fake, FakeTensor) and isinstance(real, torch.Tensor) and _affordable(fake):
        storage = _storage(real)
        shared = next((memory for memory in sources if memory.storage == storage), None)
        memory = shared or Memory(storage)
        memory.invented |= invented or any(source.invented for source in sources)
        fake._contents = Contents(real, memory)  # type: ignore[attr-defined]


def keep_constant(func: Any, args: Any, fake: torch.Tensor) -> None:
    """Keep what one of ``CONSTANTS`` makes."""
    if not _affordable(fake) or (fake.dtype.is_floating_point and fake.numel() > _MOST_CONSTANT_FLOATS):
        return
    with unset_fake_temporarily():
        if func in _ARANGES:
            keep(func(*args, dtype=fake.dtype), fake)
            return
        value = 0 if func in _ZEROS else 1 if func in _ONES else args[0 if len(args) == 1 else 1]
        keep(torch.full(fake.shape, value, dtype=fake.dtype), fake)


def follow(func: Any, args: Any, kwargs: Any, fake: Any) -> None:
    """Bring what is known up to date after an operator ran on fake tensors."""
    if func in CONSTANTS:
        keep_constant(func, args, fake)
        return
    known = [contents(tensor) for tensor in tensors(args, kwargs)]
    sources = [each.memory for each in known if each is not None]
    if not sources:
        return
    affordable = all(_affordable(leaf) for leaf in tree_leaves(fake) if isinstance(leaf, torch.Tensor))
    if len(sources) == len(known) and affordable and torch.Tag.nondeterministic_seeded not in func.tags:
        keep(on_contents(func, args, kwargs), fake, sources)
        return
    for index, name in _written(func):
        target = args[index] if index < len(args) else kwargs.get(name)
        for tensor in tensors((target,), {}):
            if (stale := contents(tensor)) is not None:
                stale.memory.known = False


def on_contents(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on the contents of its arguments, all of which are known."""

    def real(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            known = contents(leaf)
            assert known is not None, "asked for contents that are not known"
            return known.real
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    args, kwargs = tree_map(real, (args, kwargs))
    with unset_fake_temporarily(), torch.no_grad():
        return func(*args, **kwargs)


def tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors among an operator's arguments, lists of them included."""
    for item in (*args, *kwargs.values()):
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, (list, tuple)):
            yield from (entry for entry in item if isinstance(entry, torch.Tensor))


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operator writes to."""
    return tuple(
        (index, argument.name)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _affordable(fake: torch.Tensor) -> bool:
    return fake.numel() <= (_MOST_FLOATS if fake.dtype.is_floating_point else _MOST_INTEGERS)


def _storage(real: torch.Tensor) -> int:
    return int(real.untyped_storage()._cdata)
