"""Bytes of the key-value cache, layer by layer, as transformers' ``DynamicCache`` keeps it."""

from __future__ import annotations

from mem_gpt_cli.model.architecture import Architecture, Attention
from mem_gpt_cli.recipe.schema import Recipe

WINDOW_NUMBER = 8
"""A sliding window's layer holds its width as a tensor of one int64."""
BITS = {"fp8": 8, "int4": 4, "int2": 2}
"""Bits of an element in each format of a quantized cache."""


def static_tokens(recipe: Recipe) -> int:
    """Tokens of each sequence that a static cache has room for."""
    return recipe.kv_cache.max_tokens or recipe.lengths.seq


def span(attention: Attention) -> int | None:
    """How many tokens a layer looks back on at most: its window or its chunk, which caches treat alike."""
    return attention.window or attention.chunk


def elements_per_token(attention: Attention) -> int:
    """Elements that one token adds to one layer's cache.

    Every key-value head keeps a key and a value. Multi-head latent attention (arXiv:2405.04434, section 2.1)
    keeps the compressed latent and the rotated key that all heads share: transformers 5.23 updates its cache
    before the latent is expanded.
    """
    if attention.kv_lora_rank is not None:
        return attention.kv_lora_rank + (attention.rope_head_dim or 0)
    return attention.kv_heads * (attention.head_dim + attention.value_dim)


def expanded_elements_per_token(attention: Attention) -> int:
    """What the same token would take if keys and values were kept by head, latent attention expanded."""
    heads = attention.heads if attention.kv_lora_rank is not None else attention.kv_heads
    return heads * (attention.head_dim + attention.value_dim)


def stored_tokens(attention: Attention, tokens: int, *, decoded: bool) -> int:
    """Tokens whose bytes one layer's cache holds after ``tokens`` in all.

    A sliding window shows ``window - 1`` of them, but they are a view: after a prefill its storage is as long
    as the prompt, after a decode step it has ``window`` (``cache_utils.DynamicSlidingWindowLayer``).
    """
    width = span(attention)
    if width is None or not decoded:
        return tokens
    return min(tokens, width)


def cache_bytes(
    architecture: Architecture, batch: int, tokens: int, item: int, *, decoded: bool = False
) -> int:
    """Bytes of a cache that holds ``tokens`` of each of ``batch`` sequences, ``item`` bytes an element.

    ``decoded`` says that a decode step has been taken since the prefill.
    """
    total = 0
    for layer in architecture.layers:
        held = batch * stored_tokens(layer.attention, tokens, decoded=decoded)
        total += held * elements_per_token(layer.attention) * item
        total += WINDOW_NUMBER if span(layer.attention) else 0
    return total


def widths(attention: Attention) -> tuple[int, int]:
    """Elements a token of the two tensors that a layer's cache holds: keys and values, or latent and key."""
    if attention.kv_lora_rank is not None:
        return attention.kv_lora_rank, attention.rope_head_dim or 0
    return attention.kv_heads * attention.head_dim, attention.kv_heads * attention.value_dim
