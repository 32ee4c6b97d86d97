"""What a fine-tune comes to, made out before it has a device: a dry run and a run are refused the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.finetune.data import Data, load_data
from mem_gpt_cli.finetune.documents import find_documents
from mem_gpt_cli.finetune.processes import Processes
from mem_gpt_cli.finetune.schedule import check_schedule
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.profile.positions import refuse_beyond_positions
from mem_gpt_cli.quantization.saved import as_saved
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.document import dotted
from mem_gpt_cli.recipe.problems import combined, position_of
from mem_gpt_cli.recipe.refusals.training import untrainable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.build import build_on_meta
from mem_gpt_cli.workload.reading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Plan:
    """What is trained and on what; ``None`` where the recipe names no data, or nothing is here to read it."""

    recipe: Recipe
    source: ModelSource
    meta: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    data: Data | None
    steps: int | None


def check_recipe(recipe: Recipe) -> None:
    """Pass a recipe that can be trained with.

    Raises:
        RecipeError: for one that cannot.
        RecipeErrors: for several reasons.
    """
    refuse_unavailable(recipe, "profile")
    refused = [
        RecipeError(f"{dotted(path)}: {reason}", position_of(path, recipe.text))
        for path, reason in untrainable(recipe)
    ]
    if refused:
        raise combined(refused)


def plan(recipe: Recipe, processes: Processes) -> Plan:
    """All of a run that hangs on neither its device nor its folder.

    Args:
        recipe: one that ``check_recipe`` passed.
        processes: those that train.

    Raises:
        RecipeError: for a schedule that cannot be.
        UsageError: for data, a model or a length that cannot be.
    """
    source = source_of(recipe)
    recipe = as_saved(recipe, source)
    meta = build_on_meta(source, recipe)
    refuse_beyond_positions(source, recipe, meta)
    find_documents(recipe)
    tokenizer = load_tokenizer(source)
    data = None if tokenizer is None or recipe.finetune.data is None else load_data(recipe, tokenizer)
    steps = recipe.finetune.steps or (None if data is None else _one_pass(recipe, data, processes))
    if steps is not None:
        check_schedule(recipe, steps)
    return Plan(recipe, source, meta, tokenizer, data, steps)


def _one_pass(recipe: Recipe, data: Data, processes: Processes) -> int:
    rows = recipe.workload.batch * recipe.workload.accumulate * processes.count
    return max(1, -(-len(data.training) // rows))
