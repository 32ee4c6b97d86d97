"""Adapters and what they cannot stand on."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Quantization, Recipe


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """What a kind of adapter says of the weights, against what the recipe says of them."""
    if recipe.adapters.kind == "lora" and quantizes(recipe.quantization):
        yield ("adapters", "kind"), "'lora' beside quantized weights is 'qlora': write that"
    if recipe.adapters.load and recipe.task == "training" and recipe.adapters.kind == "none":
        yield (
            ("adapters", "load"),
            "what is loaded is frozen, as are the weights under it: add adapters.kind for a fresh adapter "
            "to train, or write task: inference",
        )
    for folder in sorted({one for one in recipe.adapters.load if recipe.adapters.load.count(one) > 1}):
        yield ("adapters", "load"), f"names {folder} twice, which would count it twice: name it once"


def quantizes(section: Quantization) -> bool:
    """Whether any weights are stored in less than full."""
    return section.scheme != "none" or any(
        override.scheme not in (None, "none") for override in section.overrides.values()
    )
