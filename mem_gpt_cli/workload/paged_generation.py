"""Text for prompts from one pool of pages: each is over as soon as its own text is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from mem_gpt_cli.kv_cache.paged import PagedGeneration
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.changing import for_prompts
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.paged import pool_of
from mem_gpt_cli.workload.sampling import one_by_one

if TYPE_CHECKING:
    from mem_gpt_cli.workload.generation import Completion, Prompt, Row


def complete_paged(
    model: torch.nn.Module,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    ends: frozenset[int],
) -> Iterator[Completion]:
    """Generate for all prompts at once; yields each row's text when it is over, then gives the pool back.

    Args:
        model: the torch model.
        recipe: its options; the pool is sized for these prompts, as ``pool_of`` does.
        prompts: what to go on from; those that begin alike share the pages of their common prefix.
        rows: who takes the tokens of each prompt.
        ends: tokens that end a text.

    Raises:
        RecipeError: where the recipe's options cannot hold these prompts.
    """
    sized = for_prompts(recipe, [len(prompt.tokens) for prompt in prompts], recipe.lengths.new)
    refuse_unavailable(sized, "profile")
    pick = one_by_one(recipe.sampling, [prompt.seed for prompt in prompts])
    over: list[Completion] = []

    def take(number: int, token: int) -> None:
        completion = rows[number].take(token, sized.lengths.new)
        if completion is not None:
            over.append(completion)

    model.eval()
    generation = PagedGeneration(model, pool_of(sized), pick, sized.workload.seed)
    try:
        for prompt in prompts:
            generation.add(prompt.tokens, sized.lengths.new, sorted(ends))
        while generation.pending:
            generation.step(take)
            yield from over
            over.clear()
    finally:
        generation.close()
