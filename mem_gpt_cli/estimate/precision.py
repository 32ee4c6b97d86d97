"""The same recipe at other widths of the weights."""

from __future__ import annotations

from collections.abc import Mapping

from mem_gpt_cli.estimate.report import estimate
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import MemoryReport

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "fp32": {"dtype": "fp32", "scheme": "none"},
    "bf16": {"dtype": "bf16", "scheme": "none"},
    "int8": {"dtype": "bf16", "scheme": "int8"},
    "nf4": {"dtype": "bf16", "scheme": "nf4"},
}
"""Quantized columns hold what is not quantized, and compute, in bf16."""


def precision_table(recipe: Recipe) -> dict[str, MemoryReport]:
    """The recipe in fp32, bf16, int8 and nf4; int8 and nf4 are left out of training.

    bitsandbytes gives quantized weights no gradient, so that a training step of the whole model does not
    exist in them: quantized training means adapters over frozen weights, which is another recipe.
    """
    table: dict[str, MemoryReport] = {}
    for name, column in COLUMNS.items():
        if recipe.task == "training" and column["scheme"] != "none":
            continue
        table[name] = estimate(in_precision(recipe, column))
    return table


def in_precision(recipe: Recipe, column: Mapping[str, str]) -> Recipe:
    """The recipe with weights of that width; everything else stays."""
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"dtype": column["dtype"]}),
            "quantization": recipe.quantization.model_copy(update={"scheme": column["scheme"]}),
        }
    )
