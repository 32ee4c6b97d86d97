"""The YAML that a user writes: schema, loading, overrides, what is offered, and sweeps."""

from __future__ import annotations

from mem_gpt_cli.recipe.availability import refuse_unavailable
from mem_gpt_cli.recipe.loading import load_recipe, recipe_of
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.recipe.shipped import shipped
from mem_gpt_cli.recipe.sweep import Cell, expand
from mem_gpt_cli.recipe.writing import as_run, json_schema, resolved, to_yaml

__all__ = [
    "Cell",
    "Recipe",
    "as_run",
    "expand",
    "json_schema",
    "load_recipe",
    "recipe_of",
    "refuse_unavailable",
    "resolved",
    "shipped",
    "to_yaml",
]
