"""How few layers show what all of them do.

Live bytes at a given operator of layer ``i`` of ``n`` equal layers are linear in ``i`` and in ``n``. So the
peak at each operator, counted from the first or from the last layer, is linear in ``n``: two shallow runs
give it at any depth, to the byte. Layers that come in a pattern (five with a window, one without) are added
by whole patterns.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mem_gpt_cli.ledger import Curves, EventLog, Operation
from mem_gpt_cli.report import COMPONENTS
from mem_gpt_cli.report.model import Task

WHOLE_PATTERNS = 2
"""Patterns in the shallower run; in training one more where the pattern is one layer, for a middle."""


@dataclass(frozen=True)
class DepthPlan:
    """Run ``shallow`` and ``deep`` layers to know ``full``; ``head`` layers come before the pattern."""

    shallow: int
    deep: int
    full: int
    head: int
    period: int
    stack: str

    @property
    def factor(self) -> int:
        """How many steps from ``shallow`` to ``deep`` lead from ``shallow`` to ``full``."""
        return (self.full - self.shallow) // self.period


def plan_depth(model: torch.nn.Module, task: Task) -> DepthPlan | None:
    """The shallow runs that stand for a model, ``None`` where running it whole costs no more.

    Args:
        model: the whole model, on ``meta``.
        task: training wants a layer that is neither first nor last; generation has no need of one.
    """
    found = layer_stack(model)
    if found is None:
        return None
    stack, layers = found
    kinds = layer_kinds(layers)
    head, period = pattern(kinds)
    full = len(kinds)
    rest = (full - head) % period
    middle = 1 if period == 1 and task == "training" else 0
    shallow = head + rest + WHOLE_PATTERNS * period + middle
    deep = shallow + period
    if shallow + deep >= full:
        return None
    return DepthPlan(shallow, deep, full, head + rest, period, stack)


def layer_stack(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList] | None:
    """The list of blocks and its path: the list as long as the config says, with most parameters."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)  # type: ignore[operator, union-attr]
    stacks = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return max(stacks, key=lambda item: sum(p.numel() for p in item[1].parameters()), default=None)


def layer_kinds(layers: torch.nn.ModuleList) -> list[Hashable]:
    """What tells one block from another: classes, shapes and switches, but not its own number."""
    switches = [_switches(layer) for layer in layers]
    shapes = [
        tuple((name, type(p).__name__, p.shape, p.dtype) for name, p in layer.named_parameters())
        for layer in layers
    ]
    numbers = {
        key
        for key in switches[0]
        if all(
            other.get(key) == index and other.get(key) is not False for index, other in enumerate(switches)
        )
    }
    return [
        (shape, tuple(sorted((key, repr(value)) for key, value in switch.items() if key not in numbers)))
        for shape, switch in zip(shapes, switches, strict=True)
    ]


def _switches(layer: torch.nn.Module) -> dict[tuple[str, str], Any]:
    """Every class, flag, whole number and name in a block; fractions scale values and take no memory."""
    found: dict[tuple[str, str], Any] = {}
    for path, module in layer.named_modules():
        found[path, "class"] = type(module).__name__
        for key, value in vars(module).items():
            if not key.startswith("_") and (value is None or isinstance(value, bool | int | str)):
                found[path, key] = value
    return found


def pattern(kinds: Sequence[Hashable]) -> tuple[int, int]:
    """``(head, period)``: from ``head`` on the kinds repeat every ``period``; the cheapest such pair to run.

    >>> pattern("abbbbb"), pattern("aabaabaab"), pattern("aaaa")
    ((1, 1), (0, 3), (0, 1))
    """
    best = (0, len(kinds))
    for period in range(1, len(kinds)):
        breaks = [i for i in range(len(kinds) - period) if kinds[i] != kinds[i + period]]
        head = breaks[-1] + 1 if breaks else 0
        if head + period < len(kinds) and head + 2 * period < best[0] + 2 * best[1]:
            best = (head, period)
    return best


class Place(NamedTuple):
    """An operator's place in a run, told so that runs of different depths share it.

    ``layer`` counts from the first layer as ``+0, +1, ...``, from the last as ``-1, -2, ...``; layers between
    are told by their place in the pattern alone.
    """

    phase: str
    occurrence: int
    operator: str
    module: str
    layer: str


@dataclass(frozen=True)
class Height:
    """The highest moment at one place: bytes in each of COMPONENTS."""

    components: tuple[int, ...]

    @property
    def total(self) -> int:
        """Live bytes."""
        return sum(self.components)


class NotLinearError(Exception):
    """Two shallow runs do not have the same places, so that they say nothing of a deeper one."""


def heights(curves: Curves, plan: DepthPlan | None = None, layers: int = 0) -> dict[Place, Height]:
    """The highest moment of each place in a run of ``layers`` layers; of the whole model without a plan."""
    places = [place_of(operation, curves.log, plan, layers) for operation in curves.log.operations]
    live = curves.live.tolist()
    found: dict[Place, int] = {}
    for event, operation in enumerate(curves.operation.tolist()):
        place = places[operation]
        best = found.get(place)
        if best is None or live[event] > live[best]:
            found[place] = event
    return {place: Height(tuple(curves.by_component[event].tolist())) for place, event in found.items()}


def place_of(operation: Operation, log: EventLog, plan: DepthPlan | None, layers: int) -> Place:
    """Where an operation of a run of ``layers`` layers stands."""
    span = log.spans[operation.span]
    match = plan and re.match(rf"{re.escape(plan.stack)}\.(\d+)(\.|$)(.*)", operation.module)
    if plan is None or not match:
        return Place(span.phase, span.occurrence, operation.name, operation.module, "")
    index = int(match[1])
    if index < plan.head + plan.period:
        layer = f"+{index}"
    elif index >= layers - plan.period:
        layer = f"-{layers - index}"
    else:
        layer = f"~{(index - plan.head) % plan.period}"
    return Place(span.phase, span.occurrence, operation.name, match[3], layer)


def extrapolate(
    shallow: Mapping[Place, Height], deep: Mapping[Place, Height], factor: int
) -> dict[Place, Height]:
    """Each place's height at full depth, component by component.

    Layers between, which the shallower run may lack, never stand higher than both the first and the last
    layers of their kind, because heights are linear in the number of the layer.

    Raises:
        NotLinearError: where the runs have different places, so that the model is not linear in its depth.
    """
    only = [place for place in shallow.keys() ^ deep.keys() if not place.layer.startswith("~")]
    if only:
        raise NotLinearError(f"{len(only)} operators are in one of two shallow runs only, e.g. {only[0]}")
    width = len(COMPONENTS)
    result: dict[Place, Height] = {}
    for place, height in shallow.items():
        if place not in deep:
            continue
        low, high = height.components, deep[place].components
        result[place] = Height(tuple(low[c] + factor * (high[c] - low[c]) for c in range(width)))
    return result


def module_at(place: Place, plan: DepthPlan) -> str:
    """The module's path at full depth."""
    if not place.layer:
        return place.module
    number = int(place.layer[1:])
    index = {
        "+": number,
        "-": plan.full - number,
        "~": plan.head + number + plan.period * ((plan.full - plan.head) // plan.period - 2),
    }[place.layer[0]]
    return f"{plan.stack}.{index}" + (f".{place.module}" if place.module else "")
