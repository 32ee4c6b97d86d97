"""The pool that a budget leaves room for, by sizes alone (no torch).

A page costs more than its own bytes: each token that it can hold is a column of the mask, an index, and,
while attention reads it back, keys and values once more, repeated for every query head. What a step takes
besides is bounded from above, layer by layer; the peak of a run stays within the budget.
"""

from __future__ import annotations

import os

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.kv_cache.paged_pool import Pool, PoolBytes
from mem_gpt_cli.kv_cache.paged_schedule import pages_needed
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.recipe.paging import Paging
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Recipe

_ITEM = {"fp32": 4, "fp16": 2, "bf16": 2}
_FP32 = 4
_BUDGET = ("budget", "memory")
_CUDA_WORKSPACES = 40 << 20
"""More than cuBLAS takes for itself on any GPU (32 MiB on Hopper) and a fused kernel beside it."""


def pool_within(recipe: Recipe, architecture: Architecture, weight_bytes: int) -> Pool:
    """The pool that a recipe says; else what its requests need, as far as ``budget.memory`` has room for it.

    Args:
        recipe: the requests and the budget.
        architecture: the model's numbers.
        weight_bytes: what its weights and buffers take.

    Raises:
        RecipeError: for a budget that does not even leave the pages of the longest request.
    """
    paging, budget = Paging.of(recipe), recipe.budget.memory
    if recipe.kv_cache.pages is not None or budget is None:
        return Pool.of(paging, recipe.kv_cache.pages)
    low, high = paging.largest, pages_needed(paging)
    smallest = weight_bytes + run_bytes(architecture, recipe, low)
    if smallest > budget:
        raise RecipeError(
            f"budget.memory: {budget:,} B leave too few pages for the longest request, which needs {low} of "
            f"{paging.page_size} tokens; with weights and activations that is {smallest:,} B: give that "
            "much, or fewer kv_cache.batch_tokens",
            position_of(_BUDGET, recipe.text),
        )
    while low < high:
        middle = (low + high + 1) // 2
        if weight_bytes + run_bytes(architecture, recipe, middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return Pool.of(paging, low)


def run_bytes(architecture: Architecture, recipe: Recipe, pages: int) -> int:
    """What a pool of ``pages`` takes with its inputs and the largest step, at most, beside the weights."""
    pool = Pool.of(Paging.of(recipe), pages)
    item, part = _ITEM[recipe.model.dtype], architecture.layers[0].attention
    sizes = PoolBytes(pool, len(architecture.layers), part.kv_heads, part.head_dim, item)
    return sizes.cache + sum(sizes.inputs) + sizes.mask + _step_bytes(architecture, recipe, sizes)


def _step_bytes(architecture: Architecture, recipe: Recipe, sizes: PoolBytes) -> int:
    """A bound of what one step makes and frees: the widest layer's attention, MLP or the logits."""
    queries, keys, item = sizes.pool.batch_tokens, sizes.slots, sizes.item
    hidden = architecture.hidden
    highest = 0
    for layer in architecture.layers:
        part, mlp = layer.attention, layer.mlp
        heads = part.heads * part.head_dim
        made = queries * (3 * heads + 4 * part.kv_heads * part.head_dim)
        read = 2 * keys * part.kv_heads * part.head_dim
        repeated = 2 * keys * heads if part.heads > part.kv_heads else 0
        scores = 2 * part.heads * queries * keys if recipe.attention.backend == "eager" else 0
        wide = part.heads * queries * keys * _FP32 if scores and item < _FP32 else 0
        attention = (made + read + repeated + scores) * item + wide
        width = mlp.intermediate * max(1, mlp.experts_per_token) + mlp.shared_intermediate
        feed_forward = 5 * queries * width * item
        highest = max(highest, attention, feed_forward)
    logits = sizes.pool.requests * (hidden * item + architecture.vocab * (item + _FP32))
    return 5 * queries * hidden * max(item, _FP32) + max(highest, logits) + _kernel_buffers(recipe, sizes)


def _kernel_buffers(recipe: Recipe, sizes: PoolBytes) -> int:
    """What kernels take for themselves: on the CPU each thread a block of scores of fused attention."""
    if recipe.device.type == "cuda":
        return _CUDA_WORKSPACES
    rows, threads = min(256, sizes.pool.batch_tokens), recipe.device.threads or os.cpu_count() or 1
    return threads * _FP32 * rows * (min(512, sizes.slots) + 2 + sizes.head_dim)
