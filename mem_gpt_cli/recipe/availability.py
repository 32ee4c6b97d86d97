"""Which values which lens offers in this version; everything else is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.recipe.document import KeyPath, dotted
from mem_gpt_cli.recipe.problems import combined, position_of
from mem_gpt_cli.recipe.refusals import (
    Lens,
    Refusal,
    adapters,
    attention,
    checkpointing,
    kv_cache,
    loss,
    optimizer,
    quantization,
    sampling,
    training,
)
from mem_gpt_cli.recipe.schema import Checkpointing, Loss, Optimizer, Recipe, Sampling, Section

_EVERYWHERE: dict[str, frozenset[str]] = {
    "quantization.scheme": frozenset({"none", "int8", "int4", "nf4", "fp4"}),
    "attention.backend": frozenset({"sdpa", "eager", "flash", "lsh"}),
    "kv_cache.kind": frozenset({"none", "dynamic", "static", "quantized", "offloaded", "sliding", "paged"}),
    "checkpointing.policy": frozenset({"none", "full", "every_n", "selective", "offload"}),
    "adapters.kind": frozenset({"none", "lora", "qlora"}),
    "optimizer.name": frozenset(
        {"adamw", "adamw_8bit", "paged_adamw_8bit", "lion_8bit", "adafactor", "sgd", "galore"}
    ),
    "loss.kind": frozenset({"full", "chunked", "fused"}),
}
"""What every lens offers."""

_TRAINING_ONLY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("checkpointing", tuple(Checkpointing.model_fields)),
    ("optimizer", tuple(Optimizer.model_fields)),
    ("loss", tuple(Loss.model_fields)),
    ("workload", ("steps", "accumulate", "clip_norm", "hold_outputs")),
)
"""Sections, and the keys of theirs that an inference would ignore."""


_INFERENCE_ONLY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("workload", ("logits",)),
    ("sampling", tuple(Sampling.model_fields)),
)
"""Sections, and the keys of theirs that a training would ignore.

``sampling`` is for ``memgpt generate`` alone, but every lens takes it: which token is picked changes no
memory, so that one recipe serves all subcommands.
"""


def refuse_unavailable(recipe: Recipe, lens: Lens) -> None:
    """Pass a recipe that the lens can answer for as it stands.

    Raises:
        RecipeError: a value, or a combination of values, that the lens would have to ignore.
        RecipeErrors: several of them.
    """
    first: dict[KeyPath, str] = {}
    for refusals in (
        _sweep(recipe),
        _values(recipe),
        _device(recipe),
        _task(recipe),
        quantization.refusals(recipe, lens),
        attention.refusals(recipe, lens),
        kv_cache.refusals(recipe, lens),
        sampling.refusals(recipe, lens),
        training.refusals(recipe, lens),
        checkpointing.refusals(recipe, lens),
        loss.refusals(recipe, lens),
        adapters.refusals(recipe, lens),
        optimizer.refusals(recipe, lens),
    ):
        for path, reason in refusals:
            first.setdefault(path, reason)
    if first:
        raise combined(
            RecipeError(f"{dotted(path)}: {reason}", position_of(path, recipe.text))
            for path, reason in first.items()
        )


def _sweep(recipe: Recipe) -> Iterator[Refusal]:
    if recipe.sweep is not None:
        yield ("sweep",), "a sweep is many recipes: run `memgpt bench`, or drop it with --set sweep=null"


def _values(recipe: Recipe) -> Iterator[Refusal]:
    for key, offered in _EVERYWHERE.items():
        section, name = key.split(".")
        value = getattr(getattr(recipe, section), name)
        if value not in offered:
            choices = " or ".join(sorted(offered))
            yield (section, name), f"{value!r} is not offered in this version of memgpt: choose {choices}"


def _device(recipe: Recipe) -> Iterator[Refusal]:
    if recipe.device.type == "cpu" and recipe.device.allocator is not None:
        yield ("device", "allocator"), "belongs to CUDA, the CPU's allocator has no settings: leave it out"


def _task(recipe: Recipe) -> Iterator[Refusal]:
    """What is offered, but not for this task."""
    if recipe.task == "inference":
        for path in _changed(recipe, _TRAINING_ONLY):
            yield path, "belongs to training: leave it out, or write task: training"
        return
    for path in _changed(recipe, _INFERENCE_ONLY):
        yield path, "belongs to inference: leave it out, or write task: inference"
    if recipe.quality is not None:
        yield ("quality",), "is measured of an inference: leave it out, or write task: inference"


def _changed(recipe: Recipe, keys: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[KeyPath]:
    """Those of the keys that do not have their default."""
    for key, names in keys:
        section: Section = getattr(recipe, key)
        for name in names:
            if getattr(section, name) != type(section).model_fields[name].default:
                yield key, name
