"""What checkpointing excludes."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Recipe


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """Policies that would have no effect, or that cannot keep what they are asked to."""
    section = recipe.checkpointing
    if recipe.task != "training":
        return
    if section.policy == "offload" and recipe.device.type == "cpu":
        yield (
            ("checkpointing", "policy"),
            "'offload' moves activations from a GPU's memory to the host's, and here the device is the host: "
            "choose full or selective, or a device with CUDA",
        )
    wanted = section.keep or ["attention"]
    if section.policy == "selective" and "attention" in wanted and recipe.attention.backend == "lsh":
        yield (
            ("checkpointing", "keep"),
            "lsh attention is no one operation and changes its scores in place, so that nothing of it can be "
            "kept: write keep: [products]",
        )
