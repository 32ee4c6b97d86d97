"""Which values which lens offers in this version; everything else is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.recipe.document import KeyPath, dotted
from mem_gpt_cli.recipe.problems import combined, position_of
from mem_gpt_cli.recipe.schema import Optimizer, Recipe, Section

Lens = Literal["estimate", "trace", "profile"]

_EVERYWHERE: dict[str, frozenset[str]] = {
    "quantization.scheme": frozenset({"none"}),
    "attention.backend": frozenset({"sdpa", "eager", "flash"}),
    "kv_cache.kind": frozenset({"none", "dynamic"}),
    "checkpointing.policy": frozenset({"none", "full"}),
    "adapters.kind": frozenset({"none"}),
    "optimizer.name": frozenset({"adamw"}),
    "loss.kind": frozenset({"full"}),
}
"""What every lens offers."""

_ESTIMATE_ONLY: dict[str, frozenset[str]] = {
    "quantization.scheme": frozenset({"int8", "nf4"}),
}
"""What `memgpt estimate` computes, but no lens that runs the model offers."""


_ESTIMATE_CAN = "`memgpt estimate` without --trace computes it"

_TRAINING_ONLY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("checkpointing", ("policy",)),
    ("optimizer", tuple(Optimizer.model_fields)),
    ("loss", ("kind",)),
    ("workload", ("steps", "hold_outputs")),
)
"""Sections, and the keys of theirs that an inference would ignore."""

_Refusal = tuple[KeyPath, str]


def refuse_unavailable(recipe: Recipe, lens: Lens) -> None:
    """Pass a recipe that the lens can answer for as it stands.

    Raises:
        RecipeError: a value, or a combination of values, that the lens would have to ignore.
        RecipeErrors: several of them.
    """
    first: dict[KeyPath, str] = {}
    for refusals in (
        _sweep(recipe),
        _values(recipe, lens),
        _device(recipe),
        _flash(recipe),
        _combinations(recipe),
    ):
        for path, reason in refusals:
            first.setdefault(path, reason)
    if first:
        raise combined(
            RecipeError(f"{dotted(path)}: {reason}", position_of(path, recipe.text))
            for path, reason in first.items()
        )


def _sweep(recipe: Recipe) -> Iterator[_Refusal]:
    if recipe.sweep is not None:
        yield ("sweep",), "a sweep is many recipes: run `memgpt bench`, or drop it with --set sweep=null"


def _values(recipe: Recipe, lens: Lens) -> Iterator[_Refusal]:
    for key, offered in _EVERYWHERE.items():
        section, name = key.split(".")
        value = getattr(getattr(recipe, section), name)
        estimated = _ESTIMATE_ONLY.get(key, frozenset())
        choices = offered | estimated if lens == "estimate" else offered
        if value in choices:
            continue
        reason = f"is not offered in this version of memgpt: choose {' or '.join(sorted(choices))}"
        if value in estimated:
            reason = f"cannot be traced or profiled in this version of memgpt; {_ESTIMATE_CAN}"
        yield (section, name), f"{value!r} {reason}"


def _device(recipe: Recipe) -> Iterator[_Refusal]:
    if recipe.device.type == "cpu" and recipe.device.allocator is not None:
        yield ("device", "allocator"), "belongs to CUDA, the CPU's allocator has no settings: leave it out"


def _flash(recipe: Recipe) -> Iterator[_Refusal]:
    """Flash kernels of CUDA compute in half precision only, that of the CPU knows no dropout."""
    if recipe.attention.backend != "flash":
        return
    if recipe.device.type == "cuda" and recipe.model.dtype == "fp32" and recipe.workload.autocast == "none":
        yield (
            ("attention", "backend"),
            "'flash' has no fp32 kernel on CUDA: choose sdpa, or bf16 or fp16 as model.dtype or autocast",
        )


def _combinations(recipe: Recipe) -> Iterator[_Refusal]:
    """What is offered, but not for this task."""
    if recipe.task == "inference":
        for key, names in _TRAINING_ONLY:
            section: Section = getattr(recipe, key)
            for name in names:
                if getattr(section, name) != type(section).model_fields[name].default:
                    yield (key, name), "belongs to training: leave it out, or write task: training"
        return
    if recipe.quantization.scheme != "none":
        reason = "quantized weights cannot be trained: write none, or task: inference"
        yield ("quantization", "scheme"), reason
    if recipe.kv_cache.kind not in ("none", "dynamic"):
        yield ("kv_cache", "kind"), "belongs to inference, training keeps no KV cache: leave it out"
    if recipe.workload.logits != "last":
        yield ("workload", "logits"), "belongs to inference, training needs all logits anyway: leave it out"
