"""Inference over a pool of pages: requests of unlike lengths, by transformers' continuous batching."""

from __future__ import annotations

import random
from typing import Any

import torch

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.kv_cache.page_count import PageCount
from mem_gpt_cli.kv_cache.paged import PagedGeneration, page_bytes
from mem_gpt_cli.kv_cache.paged_budget import pool_within
from mem_gpt_cli.kv_cache.paged_pool import Pool
from mem_gpt_cli.kv_cache.paged_schedule import schedule
from mem_gpt_cli.model.build import DTYPES
from mem_gpt_cli.model.facts import vocabulary
from mem_gpt_cli.quantization.cost import weight_bytes
from mem_gpt_cli.quantization.plan import plan_of
from mem_gpt_cli.recipe.paging import Paging
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.observer import Observer


class Paged:
    """Greedy generation of ``lengths.new`` tokens for each of the recipe's prompts, from one pool.

    The pool and the tensors that a step's inputs are written into are made at the end of ``load``, as in a
    server that is made ready. A step takes up to ``kv_cache.batch_tokens`` tokens: one for each request that
    decodes, the rest for prompts. Steps while a prompt waits or is not read to its end are ``prefill``, those
    after are ``decode``.
    """

    def __init__(self, recipe: Recipe, pool: Pool) -> None:
        self.recipe = recipe
        self.lengths = recipe.lengths._replace(prompt=0)  # prompts wait on the host, none on the device
        self.pool = pool
        self.count = PageCount(pool.page_size)

    @property
    def steps(self) -> int:
        """Batches that are computed; more where the pool is too small for all requests at once."""
        return sum(1 for _ in schedule(Paging.of(self.recipe)))

    def prepare(self, model: torch.nn.Module, observer: Observer) -> None:
        """Set the model to inference."""
        del observer
        model.eval()

    def run(self, model: torch.nn.Module, tokens: torch.Tensor, observer: Observer) -> list[list[int]]:
        """Serve the requests; returns the new tokens of each, ``[request][new]``; ``tokens`` is empty."""
        del tokens
        with observer.phase("load"):
            generation = PagedGeneration(model, self.pool, seed=self.recipe.workload.seed)
            self.count = generation.count
            observer.mark("kv_cache", generation.pool_tensors())
            observer.mark("activations", generation.input_tensors())
        for prompt in self.prompts(vocabulary(model)):
            generation.add(prompt, self.recipe.lengths.new)
        try:
            while generation.pending:
                with observer.phase("prefill" if generation.reading else "decode"):
                    generation.step()
            return generation.tokens
        finally:
            generation.close()

    def prompts(self, words: int) -> list[list[int]]:
        """The prompts' tokens, which depend on the seed and the vocabulary's size alone.

        They are whole numbers on the host, as continuous batching wants them, so that a dry run has the same
        ones and shares the same pages.
        """
        draw = random.Random(self.recipe.workload.seed)
        return [[draw.randrange(words) for _ in range(length)] for length in self.recipe.prompts]


def pool_of(recipe: Recipe) -> Pool:
    """The pool that a recipe says, else what its requests need and ``budget.memory`` leaves room for.

    Raises:
        RecipeError: for a budget that leaves too few pages.
        UnsupportedError: for a budget over a model whose sizes no formula knows.
    """
    if recipe.budget.memory is None or recipe.kv_cache.pages is not None:
        return Pool.of(Paging.of(recipe), recipe.kv_cache.pages)
    architecture = source_of(recipe).architecture
    item = DTYPES[recipe.model.dtype].itemsize
    return pool_within(recipe, architecture, weight_bytes(architecture, plan_of(recipe), item))


def page_details(workload: Paged, model: torch.nn.Module) -> dict[str, Any]:
    """``details`` of a report, ``{"pages": ...}``: what became of the pages of a run that is over."""
    pool = workload.pool
    padded = Paging.of(workload.recipe).padded_tokens
    return {"pages": workload.count.report(page_bytes(model, pool.page_size), pool.pages, padded)}
