"""How much a generation computes: the price of not keeping a cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

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
    attended = sum(attention_flops(architecture, steps))
    return {
        "decode_tokens": batch * tokens,
        "decode_flops": batch * (2 * tokens * active_linear_weights(architecture) + attended),
    }


def attention_flops(architecture: Architecture, steps: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Operations of each kind of attention layer in ``steps``, pairs of queries and the keys that they see.

    Two a multiply-add, in a product with every key and every value.
    """
    for part, layers in Counter(layer.attention for layer in architecture.layers).items():
        span = cache_cost.span(part)
        for queries, keys in steps:
            seen = min(keys, span or keys)
            yield layers * attention_cost.score_flops(
                1, part.heads, queries, seen, part.head_dim, part.value_dim
            )


def active_linear_weights(architecture: Architecture) -> int:
    """Weights that meet each token: all of the linear layers (arXiv:2001.08361, section 2.1), of a mixture's
    experts those that are chosen.
    """
    linear = sum(t.numel * t.count for t in architecture.tensors if t.kind == "linear")
    return linear - idle_expert_weights(architecture)


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
