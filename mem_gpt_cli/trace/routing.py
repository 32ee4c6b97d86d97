"""Answers to what a model asks about data in a trace, where there is none.

A mixture of experts in its plain form asks which tokens go to which expert, and what it then allocates
follows from the answer. ``routing`` invents the choice of experts, and what follows from it is computed (see
``contents``). Three choices are offered:

``balanced``
    Row after row takes the next experts, so that none has more tokens than it must: what training aims at.
``concentrated``
    All tokens choose the last experts.
``spilled``
    All tokens choose the first experts, but for a few choices, one for each of the others. Those come first
    in backward, so that the gradients of whole stacks of experts are there, and are added up, beside what was
    saved for all of the other choices.

The bytes at each event of a loop over experts grow linearly with the tokens of each expert, so full experts
need the most: ``concentrated`` and ``spilled`` together are the upper bound. No choice is the least at every
event, because buffers of one expert outlive its turn. But outside of the experts' block the choice makes no
difference: the highest event there (``Routing.certain``) is the lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from mem_gpt_cli.trace.contents import contents, follow, keep, on_contents, tensors

Scenario = Literal["balanced", "concentrated", "spilled"]
SCENARIOS: tuple[Scenario, ...] = ("balanced", "concentrated", "spilled")

aten = torch.ops.aten
QUESTIONS = (DataDependentOutputException, DynamicOutputShapeException)
"""What torch raises where a fake run asks about data."""


class Routing(TorchDispatchMode):
    """Answers questions about data; to be entered above ``FakeTensorMode`` and below a ledger.

    ``asked_in`` holds the place of each question whose answer was invented; it is empty where the data
    decides nothing.
    """

    def __init__(self, scenario: Scenario, place: Callable[[], str] = str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scenario = scenario
        self.asked_in: set[str] = set()
        self._place = place

    def certain(self, place: str) -> bool:
        """Whether memory at a place (``Operation.module``) is the same for every choice.

        It is outside of the modules that hold those which asked: a router asks, the experts beside it use the
        answer.
        """
        blocks = {asked.rpartition(".")[0] or asked for asked in self.asked_in}
        return not any(place == block or place.startswith(block + ".") or not block for block in blocks)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator on fake tensors, and on contents where they are known."""
        kwargs = kwargs or {}
        try:
            result = func(*args, **kwargs)
        except QUESTIONS:
            return self._answer(func, args, kwargs)
        choose = _CHOICES.get(func)
        if choose is not None and contents(args[0]) is None:
            keep(choose(self.scenario, args, result), result, invented=True)
        else:
            follow(func, args, kwargs, result)
        return result

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operator whose size or value is up to the data.

        Raises:
            DataDependentOutputException, DynamicOutputShapeException: where the data is not known.
        """
        if func is aten.index.Tensor:
            indices = [position for index in args[1] for position in self._positions(index)]
            return func(args[0], indices)
        if func is aten.masked_select.default:
            mask = args[1].expand(torch.broadcast_shapes(args[0].shape, args[1].shape))
            return args[0].new_empty(self._count(mask))
        known = [contents(tensor) for tensor in tensors(args, kwargs)]
        sources = [each.memory for each in known if each is not None]
        if len(sources) < len(known):
            return func(*args, **kwargs)
        if any(source.invented for source in sources):
            self.asked_in.add(self._place())
        real = on_contents(func, args, kwargs)
        device = next(tensors(args, kwargs)).device

        def like(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=device)

        result = tree_map(like, real)
        keep(real, result, sources)
        return result

    def _positions(self, index: torch.Tensor | None) -> list[torch.Tensor | None]:
        """An index as integers: a mask becomes the positions where it holds, one tensor a dimension."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        count = self._count(index)
        return [torch.empty(count, dtype=torch.long, device=index.device) for _ in range(index.dim())]

    def _count(self, mask: torch.Tensor) -> int:
        """How often a mask holds; raises the question where that is not known."""
        known = contents(mask)
        if known is None:
            return int(aten.nonzero.default(mask).shape[0])
        if known.memory.invented:
            self.asked_in.add(self._place())
        with unset_fake_temporarily():
            return int(known.real.count_nonzero())


@contextmanager
def routing(scenario: Scenario, place: Callable[[], str] = str) -> Iterator[Routing]:
    """Answer questions about data by a scenario; enter it inside ``FakeTensorMode`` and outside a ledger.

    Args:
        scenario: which extreme to invent; see the module's text.
        place: says where a question comes from, e.g. a ledger's ``modules.current``.
    """
    oracle = Routing(scenario, place)
    with oracle:
        yield oracle


def _chosen(scenario: Scenario, rows: int, among: int, count: int) -> torch.Tensor:
    """Which ``count`` of ``among`` each row chooses, ``[rows, count]``."""
    same = torch.arange(count).expand(rows, count)
    if scenario == "balanced":
        return (torch.arange(rows)[:, None] * count + same) % among
    if scenario == "concentrated":
        return same + among - count
    columns = max(1, count - 2)  # two experts stay full, where a row chooses so many
    spilled = min(among - count, rows * columns, among if count > 1 else 2)
    chosen = same.clone()
    places = torch.arange(spilled)
    chosen[places % rows, places // rows] = among - spilled + places
    return chosen


def _choice(scenario: Scenario, scores: torch.Tensor, indices: torch.Tensor, dim: int, count: int) -> Any:
    """The contents of ``indices``: ``count`` choices along ``dim`` of ``scores``; ``None`` for empty ones."""
    if indices.numel() == 0 or scores.dim() == 0:
        return None
    others = [size for d, size in enumerate(scores.shape) if d != dim % scores.dim()]
    with unset_fake_temporarily():
        chosen = _chosen(scenario, indices.numel() // count, scores.shape[dim], count)
        chosen = chosen.reshape([*others, count]).movedim(-1, dim)
        return chosen.reshape(indices.shape).contiguous()


def _topk(scenario: Scenario, args: Any, result: Any) -> Any:
    return None, _choice(scenario, args[0], result[1], args[2] if len(args) > 2 else -1, args[1])


def _sort(scenario: Scenario, args: Any, result: Any) -> Any:
    dim = args[1] if len(args) > 1 else -1
    return None, _choice(scenario, args[0], result[1], dim, args[0].shape[dim] if args[0].dim() else 1)


def _extreme(scenario: Scenario, args: Any, result: Any) -> Any:
    return None, _choice(scenario, args[0], result[1], args[1], 1)


def _argument_of_extreme(scenario: Scenario, args: Any, result: Any) -> Any:
    if len(args) < 2 or args[1] is None:
        return None
    return _choice(scenario, args[0], result, args[1], 1)


_CHOICES: dict[Any, Callable[[Scenario, Any, Any], Any]] = {
    aten.topk.default: _topk,
    aten.sort.default: _sort,
    aten.max.dim: _extreme,
    aten.min.dim: _extreme,
    aten.argmax.default: _argument_of_extreme,
    aten.argmin.default: _argument_of_extreme,
}
