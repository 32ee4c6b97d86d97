"""The cheapest change of a recipe that lowers its peak: each is estimated, none is a rule of thumb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.estimate.phases import Walk, walk
from mem_gpt_cli.kv_cache.window import windowed
from mem_gpt_cli.loss.cost import DEFAULT_CHUNK
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.quantization.saved import as_saved, is_packed
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import MemoryReport

Price = Literal["free", "time", "result"]

PRICES: tuple[Price, ...] = ("free", "time", "result")
"""What a change costs, in the order in which changes are advised: the result is the same up to rounding, and
as fast; the same, but later; another one.
"""
WORTHWHILE = 0.02
"""The part of the peak that a change must save to be advised."""

_SCORES = ("attention scores", "attention mask")
_ACTIVATIONS = (*_SCORES, "attention", "feed-forward", "normalisation", "residual stream", "kernel buffers")
_UPDATED = ("gradients", "optimizer state", "optimizer temporaries")
_CACHE = ("cached keys and values",)
_WEIGHTS = ("weights", "kernel buffers")


class Change(NamedTuple):
    """A change of some keys, its price, and the parts of memory that it may lower; none named: all."""

    name: str
    set: Mapping[str, Any]
    price: Price
    parts: tuple[str, ...] = ()


class Advice(NamedTuple):
    """A change that lowers the peak by ``saved_bytes``, as the formula has it."""

    change: str
    set: Mapping[str, Any]
    saved_bytes: int
    price: Price


def advice(recipe: Recipe, report: MemoryReport, *, every: bool = False) -> tuple[Advice, ...]:
    """Changes that lower the peak by a worthwhile part, the cheapest first.

    Of those that cost nothing, or time, the one that saves most comes first, of equals the one that costs
    less; of those that change the result, the one that changes it least.

    Args:
        recipe: the recipe.
        report: its estimate.
        every: try each change; else none that costs more than the cheapest worthwhile one, which is faster.
    """
    source = source_of(recipe)
    recipe = as_saved(recipe, source)
    trial = Trial.begin(recipe, windowed(source.architecture, recipe), is_packed(recipe, source), report)
    training = recipe.task == "training"
    changes = list(_training(recipe, report.peak.name) if training else _inference(recipe))
    found: list[Advice] = []
    for price in PRICES:
        worthwhile = (
            one for change in changes if change.price == price and (one := trial.of(change)) is not None
        )
        if price != "result":
            found += sorted(worthwhile, key=lambda one: -one.saved_bytes)
        elif every:
            found += worthwhile
        else:
            found += islice(worthwhile, 1)
        if found and not every:
            break
    return tuple(found)


class Trial(NamedTuple):
    """A recipe with its estimate; ``packed`` says that its weights come quantized from a folder.

    ``peak_bytes`` is the peak as changes are measured by: on a card blocks are as large as what is in them.
    """

    recipe: Recipe
    architecture: Architecture
    packed: bool
    report: MemoryReport
    peak_bytes: int

    @classmethod
    def begin(cls, recipe: Recipe, architecture: Architecture, packed: bool, report: MemoryReport) -> Trial:
        """The recipe as it stands, which all changes are held against."""
        if recipe.device.type == "cpu":
            return cls(recipe, architecture, packed, report, report.allocated_bytes)
        walked = _walk(architecture, recipe, packed=packed)
        return cls(recipe, architecture, packed, report, _peak_bytes(walked))

    def of(self, change: Change) -> Advice | None:
        """What a change saves, by the formula; ``None`` where that is little, or a lens would refuse it."""
        least = WORTHWHILE * self.report.allocated_bytes
        at_peak = self.report.details["at_peak_by_part"][self.report.peak.name]
        if sum(at_peak.get(part, 0) for part in change.parts or at_peak) < least:
            return None
        recipe = changed(self.recipe, change.set)
        try:
            refuse_unavailable(recipe, "estimate")
            refuse_unavailable(recipe, "profile")
            walked = _walk(self.architecture, recipe, packed=self.packed)
        except MemgptError:
            return None
        saved = self.peak_bytes - _peak_bytes(walked)
        return Advice(change.name, change.set, saved, change.price) if saved >= least else None


def advised(recipe: Recipe, report: MemoryReport, formula: MemoryReport, *, every: bool) -> MemoryReport:
    """The report of any lens with advice in its details; what is saved is by the ``formula``'s report."""
    found = [one._asdict() for one in advice(recipe, formula, every=every)]
    return replace(report, details={**report.details, "advice": found})


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values at some dotted keys."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=part) for name, part in sections.items()}
    )


def _peak_bytes(walked: Walk) -> int:
    return max(moment.total for moment in walked.peaks.values())


def _walk(architecture: Architecture, recipe: Recipe, *, packed: bool) -> Walk:
    if recipe.device.type == "cpu":
        return walk(architecture, recipe, packed=packed)
    from mem_gpt_cli.estimate.on_card import quick_walk  # estimates for the CPU start without it

    return quick_walk(architecture, recipe, packed=packed)


def _training(recipe: Recipe, peak: str) -> Iterator[Change]:
    work, optimizer = recipe.workload, recipe.optimizer
    if optimizer.name in _NAMES and optimizer.implementation != "fused":
        yield Change(
            f"fused {_NAMES[optimizer.name]}",
            {"optimizer.implementation": "fused"},
            "free",
            ("optimizer temporaries",),
        )
    yield from _both(recipe)
    if work.hold_outputs:
        yield Change("outputs not held", {"workload.hold_outputs": False}, "free", ("logits",))
    yield from _chunks(recipe)
    yield from _checkpoints(recipe)
    if work.batch % 2 == 0:
        halved = {"workload.batch": work.batch // 2, "workload.accumulate": 2 * work.accumulate}
        yield Change("half the batch, accumulated", halved, "time", (*_ACTIVATIONS, "logits", "inputs"))
    yield from _narrower(recipe)
    yield from _fewer_states(recipe, peak)


_NAMES = {"adamw": "AdamW", "sgd": "SGD"}


def _chunks(recipe: Recipe) -> Iterator[Change]:
    """Fewer rows of logits at once."""
    work, loss = recipe.workload, recipe.loss
    if loss.kind == "full":
        held = {"workload.hold_outputs": False} if work.hold_outputs else {}
        yield Change("chunked loss", {"loss.kind": "chunked", **held}, "time", ("logits",))
    elif loss.kind == "chunked":
        fewer = min(loss.chunk or DEFAULT_CHUNK, work.batch * recipe.lengths.seq) // 4
        if fewer >= _FEWEST_ROWS:
            yield Change(f"the loss in chunks of {fewer}", {"loss.chunk": fewer}, "time", ("logits",))


_FEWEST_ROWS = 32
"""Rows of logits below which a chunk's product is too thin to be worth its matrix being read."""


def _checkpoints(recipe: Recipe) -> Iterator[Change]:
    """Less of the layers kept, what runs least of them again first."""
    section = recipe.checkpointing
    if section.policy == "none":
        for name, policy in (
            ("selective checkpointing", "selective"),
            ("every second layer checkpointed", "every_n"),
        ):
            yield Change(name, {"checkpointing.policy": policy}, "time", _ACTIVATIONS)
    if section.policy in ("none", "selective", "every_n"):
        of_another = {f"checkpointing.{key}": None for key in ("every", "keep") if getattr(section, key)}
        yield Change(
            "full checkpointing", {"checkpointing.policy": "full", **of_another}, "time", _ACTIVATIONS
        )


def _narrower(recipe: Recipe) -> Iterator[Change]:
    """Narrower activations, states and weights."""
    work = recipe.workload
    wide = work.autocast == "none" and recipe.model.dtype == "fp32"
    if wide:
        yield Change("bf16 autocast", {"workload.autocast": "bf16"}, "result", (*_ACTIVATIONS, "logits"))
    if recipe.optimizer.name == "adamw":
        yield _other_optimizer(recipe, "8-bit AdamW", "adamw_8bit")
    if wide:
        yield Change("weights in bf16", {"model.dtype": "bf16"}, "result")


def _fewer_states(recipe: Recipe, peak: str) -> Iterator[Change]:
    """Another rule of updating where the step is the peak, or none for most weights."""
    if peak == "optimizer_step" and recipe.optimizer.name in ("adamw", "adamw_8bit"):
        yield _other_optimizer(recipe, "Adafactor", "adafactor")
        yield _other_optimizer(recipe, "8-bit Lion", "lion_8bit")
    if recipe.adapters.kind == "none":
        yield Change("LoRA", {"adapters.kind": "lora"}, "result", _UPDATED)
        nf4 = {"adapters.kind": "qlora", "quantization.scheme": "nf4"}
        yield Change("QLoRA", nf4, "result", (*_UPDATED, "weights"))


def _other_optimizer(recipe: Recipe, name: str, value: str) -> Change:
    plain = {"optimizer.implementation": "auto"} if recipe.optimizer.implementation != "auto" else {}
    states = ("optimizer state", "optimizer temporaries")
    return Change(name, {"optimizer.name": value, **plain}, "result", states)


def _both(recipe: Recipe) -> Iterator[Change]:
    """What both tasks may change."""
    if recipe.attention.backend == "eager":
        yield Change("SDPA in place of eager attention", {"attention.backend": "sdpa"}, "free", _SCORES)


def _inference(recipe: Recipe) -> Iterator[Change]:
    work, cache = recipe.workload, recipe.kv_cache
    yield from _both(recipe)
    if cache.kind == "static" and cache.max_tokens is not None:
        yield Change("a cache no longer than the workload", {"kv_cache.max_tokens": None}, "free", _CACHE)
    if len(set(recipe.prompts)) > 1 and cache.kind in ("dynamic", "static"):
        paged = {"kv_cache.kind": "paged"} | ({"kv_cache.max_tokens": None} if cache.max_tokens else {})
        yield Change("a paged cache, without padding", paged, "time", (*_CACHE, *_ACTIVATIONS, "logits"))
    if recipe.model.dtype == "fp32" and work.autocast == "none":
        yield Change("weights in bf16", {"model.dtype": "bf16"}, "result")
    if cache.kind == "dynamic":
        yield Change("an fp8 cache", {"kv_cache.kind": "quantized"}, "result", _CACHE)
    if recipe.quantization.scheme == "none":
        for scheme in ("int8", "nf4"):
            yield Change(f"{scheme} weights", {"quantization.scheme": scheme}, "result", _WEIGHTS)
