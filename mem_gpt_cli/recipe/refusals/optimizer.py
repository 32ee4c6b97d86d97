"""Optimizers that a device lacks, or that another option leaves nothing to do."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Recipe


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """What an optimizer would have to ignore."""
    if recipe.task != "training":
        return
    name = recipe.optimizer.name
    if name == "paged_adamw_8bit" and recipe.device.type == "cpu":
        yield (
            ("optimizer", "name"),
            "'paged_adamw_8bit' moves its state between a GPU and the host, on CPU there is nothing to move: "
            "write adamw_8bit, or a GPU",
        )
    fused = name == "sgd" and recipe.optimizer.implementation == "fused"
    if (
        fused
        and recipe.device.type == "cpu"
        and recipe.model.dtype != "fp32"
        and recipe.adapters.kind == "none"
    ):
        yield (
            ("optimizer", "implementation"),
            f"torch's fused SGD changes nothing in {recipe.model.dtype} on CPU (seen with torch 2.13): write "
            "loop or foreach",
        )
    if name == "galore" and recipe.adapters.kind != "none":
        yield (
            ("optimizer", "name"),
            f"'galore' projects the gradients of whole matrices, {recipe.adapters.kind} trains factors that "
            "are of low rank already: write adamw or adamw_8bit",
        )
