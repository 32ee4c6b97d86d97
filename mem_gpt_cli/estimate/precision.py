"""The same recipe at other widths of the weights."""

from __future__ import annotations

from collections.abc import Mapping

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.estimate.report import report_of
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.schema import Quantization, Recipe
from mem_gpt_cli.report.model import MemoryReport

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "fp32": {"dtype": "fp32", "scheme": "none"},
    "bf16": {"dtype": "bf16", "scheme": "none"},
    "int8": {"dtype": "bf16", "scheme": "int8"},
    "nf4": {"dtype": "bf16", "scheme": "nf4"},
}
"""Quantized columns hold what is not quantized, and compute, in bf16."""


def precision_table(recipe: Recipe, own: MemoryReport | None = None) -> dict[str, MemoryReport]:
    """The recipe in fp32, bf16, int8 and nf4; int8 and nf4 are left out of training.

    ``own`` is the estimate of the recipe as it stands, where there is one: it is not computed twice.

    bitsandbytes gives quantized weights no gradient, so that a training step of the whole model does not
    exist in them: quantized training means adapters over frozen weights, which is another recipe.
    """
    source = source_of(recipe)
    table: dict[str, MemoryReport] = {}
    for name, column in COLUMNS.items():
        if recipe.task == "training" and column["scheme"] != "none":
            continue
        at = in_precision(recipe, column)
        if own and at == recipe:
            table[name] = own
            continue
        try:
            refuse_unavailable(at, "estimate")
        except RecipeError:
            continue  # the recipe's other options do not go with this width
        table[name] = report_of(at, source, source.architecture)
    return table


def in_precision(recipe: Recipe, column: Mapping[str, str]) -> Recipe:
    """The recipe with weights of that width, stored as is usual for it; everything else stays."""
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"dtype": column["dtype"]}),
            "quantization": Quantization.model_validate({"scheme": column["scheme"]}),
        }
    )
