"""Which values which lens offers in this version; everything else is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.recipe.document import KeyPath, dotted
from mem_gpt_cli.recipe.problems import combined, position_of
from mem_gpt_cli.recipe.schema import Loss, Optimizer, Recipe, Workload

Lens = Literal["estimate", "trace", "profile"]

_EVERYWHERE: dict[str, frozenset[str]] = {
    "quantization.scheme": frozenset({"none"}),
    "attention.backend": frozenset({"sdpa", "eager"}),
    "kv_cache.kind": frozenset({"none", "dynamic"}),
    "checkpointing.policy": frozenset({"none", "full"}),
    "adapters.kind": frozenset({"none"}),
    "optimizer.name": frozenset({"adamw"}),
    "loss.kind": frozenset({"full"}),
}
"""What every lens offers."""

_ESTIMATE_ONLY: dict[str, frozenset[str]] = {
    "quantization.scheme": frozenset({"int8", "nf4"}),
    "attention.backend": frozenset({"flash"}),
}
"""What `memgpt estimate` computes, but no lens that runs the model offers."""


def refuse_unavailable(recipe: Recipe, lens: Lens) -> None:
    """Pass a recipe that the lens can answer for as it stands.

    Raises:
        RecipeError: a value, or a combination of values, that the lens would have to ignore; RecipeErrors for
            several of them.
    """
    found = (*_sweep(recipe), *_values(recipe, lens), *_device(recipe, lens), *_combinations(recipe))
    errors = [
        RecipeError(f"{dotted(path)}: {reason}", position_of(path, recipe.text)) for path, reason in found
    ]
    if errors:
        raise combined(errors)


def _sweep(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if recipe.sweep is not None:
        yield ("sweep",), "a sweep is many recipes: run `memgpt bench`, or drop it with --set sweep=null"


def _values(recipe: Recipe, lens: Lens) -> Iterator[tuple[KeyPath, str]]:
    for key, offered in _EVERYWHERE.items():
        section, name = key.split(".")
        value = getattr(getattr(recipe, section), name)
        estimated = _ESTIMATE_ONLY.get(key, frozenset())
        if value in offered or (lens == "estimate" and value in estimated):
            continue
        if value in estimated:
            yield (
                (section, name),
                (
                    f"{value!r} cannot be traced or profiled in this version of memgpt; "
                    "`memgpt estimate` without --trace computes it"
                ),
            )
        else:
            choices = sorted(offered | (estimated if lens == "estimate" else frozenset()))
            yield (
                (section, name),
                (f"{value!r} is not offered in this version of memgpt: choose {' or '.join(choices)}"),
            )


def _device(recipe: Recipe, lens: Lens) -> Iterator[tuple[KeyPath, str]]:
    name = recipe.device.name
    if recipe.device.type == "cpu" or lens == "estimate":
        return
    path = ("device", "name")
    if lens == "trace":
        yield (
            path,
            (
                f"{name!r} cannot be traced in this version of memgpt, which traces cpu; "
                "`memgpt estimate` without --trace computes it"
            ),
        )
    elif name.partition(":")[0] != "cuda":
        yield path, f"{name!r} is not a device that can be run on: write cpu, cuda or cuda:N"


def _combinations(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if recipe.task == "training":
        if recipe.quantization.scheme != "none":
            yield (
                ("quantization", "scheme"),
                "quantized weights cannot be trained: write none, or task: inference",
            )
        if recipe.kv_cache.kind not in ("none", "dynamic"):
            yield ("kv_cache", "kind"), "training keeps no KV cache: leave the key out"
        if recipe.workload.logits != Workload().logits:
            yield ("workload", "logits"), "belongs to inference, training needs all logits: leave the key out"
        return
    if recipe.checkpointing.policy != "none":
        yield ("checkpointing", "policy"), "belongs to training: leave it out, or write task: training"
    for section, given, default in (
        ("optimizer", recipe.optimizer, Optimizer()),
        ("loss", recipe.loss, Loss()),
        ("workload", recipe.workload, Workload()),
    ):
        names = ("steps", "hold_outputs") if section == "workload" else type(default).model_fields
        for name in names:
            if getattr(given, name) != getattr(default, name):
                yield (section, name), "belongs to training: leave it out, or write task: training"
