"""How much a generation computes: the price of not keeping a cache."""

from __future__ import annotations

from mem_gpt_cli.attention import cost as attention_cost
from mem_gpt_cli.kv_cache import cost as cache_cost
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.recipe.schema import Recipe


def work(architecture: Architecture, recipe: Recipe) -> dict[str, int]:
    """Tokens that pass through the model, and floating-point operations, in the decode steps of a recipe.

    With a cache each step takes one token of each sequence; without one it takes the whole sequence again.
    """
    lengths, batch = recipe.lengths, recipe.workload.batch
    ends = range(lengths.prompt + 1, lengths.prompt + lengths.new)
    cached = recipe.kv_cache.kind != "none"
    steps = [(1 if cached else end, end) for end in ends]
    tokens = sum(queries for queries, _ in steps)
    return {
        "decode_tokens": batch * tokens,
        "decode_flops": batch * sum(forward_flops(architecture, queries, keys) for queries, keys in steps),
    }


def forward_flops(architecture: Architecture, queries: int, keys: int) -> int:
    """Operations of one forward pass of ``queries`` tokens that see ``keys``: two a multiply-add.

    Every weight of a linear layer meets every token (arXiv:2001.08361, section 2.1), of a mixture's experts
    those that are chosen; attention adds a product with every key and every value.
    """
    linear = sum(t.numel * t.count for t in architecture.tensors if t.kind == "linear")
    linear -= idle_expert_weights(architecture)
    attended = 0
    for layer in architecture.layers:
        part = layer.attention
        seen = min(keys, cache_cost.span(part) or keys)
        attended += attention_cost.score_flops(1, part.heads, queries, seen, part.head_dim, part.value_dim)
    return 2 * linear * queries + attended


def idle_expert_weights(architecture: Architecture) -> int:
    """Weights of the experts that a token passes by."""
    return sum(
        (layer.mlp.experts - layer.mlp.experts_per_token)
        * layer.mlp.intermediate
        * architecture.hidden
        * (3 if layer.mlp.gated else 2)
        for layer in architecture.layers
        if layer.mlp.experts
    )
