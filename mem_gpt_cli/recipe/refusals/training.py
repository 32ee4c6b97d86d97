"""Keys of training's sections that another key makes meaningless, and options that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Recipe, Section

_ONLY_WITH: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("checkpointing", "every", "policy", ("every_n",)),
    ("checkpointing", "keep", "policy", ("selective",)),
    ("adapters", "rank", "kind", ("lora", "qlora")),
    ("adapters", "alpha", "kind", ("lora", "qlora")),
    ("adapters", "dropout", "kind", ("lora", "qlora")),
    ("adapters", "targets", "kind", ("lora", "qlora")),
    ("optimizer", "momentum", "name", ("sgd",)),
    ("optimizer", "rank", "name", ("galore",)),
    ("optimizer", "update_every", "name", ("galore",)),
    ("optimizer", "bits", "name", ("galore",)),
    ("loss", "chunk", "kind", ("chunked",)),
)
"""A section, a key of it, and which values of which other key of it give that key a meaning."""

_CHOOSES_ITS_CODE = ("adamw", "sgd")
"""Optimizers of torch, which have the three implementations."""


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """What checkpointing, adapters, optimizer, loss and fine-tuning would have to ignore."""
    yield from _meaningless(recipe)
    optimizer = recipe.optimizer
    if optimizer.implementation != "auto" and optimizer.name not in _CHOOSES_ITS_CODE:
        yield (
            ("optimizer", "implementation"),
            f"is a choice for {' and '.join(_CHOOSES_ITS_CODE)}, not for {optimizer.name}: leave it out",
        )
    if recipe.loss.kind != "full" and recipe.workload.hold_outputs:
        yield (
            ("workload", "hold_outputs"),
            f"holds the logits, which the {recipe.loss.kind} loss never has all at once: leave it out",
        )
    finetune = recipe.finetune
    if finetune.held_out is not None and finetune.held_out_percent != _default(finetune, "held_out_percent"):
        yield (
            ("finetune", "held_out_percent"),
            "is of data, and finetune.held_out names what is held out: leave one of them out",
        )
    if finetune.checkpoint_every is None and finetune.keep_checkpoints != _default(
        finetune, "keep_checkpoints"
    ):
        yield (
            ("finetune", "keep_checkpoints"),
            "means something beside finetune.checkpoint_every alone: set that, or leave it out",
        )


def untrainable(recipe: Recipe) -> Iterator[Refusal]:
    """What every lens offers, and ``memgpt finetune`` would ignore or cannot learn with."""
    workload = recipe.workload
    if workload.steps != _default(workload, "steps"):
        yield ("workload", "steps"), "is how many steps a lens looks at: write finetune.steps"
    if workload.autocast == "fp16":
        yield (
            ("workload", "autocast"),
            "gradients of fp16 products vanish unless the loss is scaled, which this step does not do: "
            "choose bf16, or none",
        )
    if recipe.model.dtype == "fp16":
        yield (
            ("model", "dtype"),
            "gradients of fp16 weights vanish unless the loss is scaled, which this step does not do: choose "
            "fp32 (with workload.autocast: bf16) or bf16",
        )


def _default(section: Section, key: str) -> Any:
    return type(section).model_fields[key].default


def _meaningless(recipe: Recipe) -> Iterator[Refusal]:
    for section, key, other, values in _ONLY_WITH:
        part = getattr(recipe, section)
        if getattr(part, key) is not None and getattr(part, other) not in values:
            wanted = " or ".join(f"{section}.{other}: {value}" for value in values)
            yield (section, key), f"means something for {wanted} alone: set that, or leave it out"
