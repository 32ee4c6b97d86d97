"""Bytes of the key-value cache, layer by layer, as transformers' ``cache_utils`` keeps it."""

from __future__ import annotations

from typing import NamedTuple

from mem_gpt_cli.model.architecture import Architecture, Attention
from mem_gpt_cli.recipe.schema import Recipe

WINDOW_NUMBER = 8
"""A window's layer holds its width as a tensor of one int64, a static layer how many tokens it has."""
SCALE = 4
"""A scale of fp8, in fp32: one for all keys of a layer, one for all of its values."""
FP8 = 1
"""Bytes of an element of fp8."""
BITS = {"fp8": 8, "int4": 4, "int2": 2}
"""Bits of an element in each format of a quantized cache."""
RESIDENT_LAYERS = 1
"""Layers of an offloaded cache that are on the device between two passes: the first, brought back early."""


class Storing(NamedTuple):
    """How a cache stores an element, in bytes, and what it keeps beside each layer's keys and values.

    ``room`` is the tokens that a static cache has room for; ``resident`` the layers that are on the device
    (``None``: all).
    """

    item: int
    beside: int = 0
    room: int | None = None
    resident: int | None = None


def storing(recipe: Recipe, item: int) -> Storing:
    """How a recipe's cache stores keys and values that are ``item`` bytes wide.

    A quantized cache is fp8, transformers' ``Fp8QuantizedLayer``: what packages make of int4 and int2 is not
    known here.
    """
    kind = recipe.kv_cache.kind
    if kind == "static":
        return Storing(item, WINDOW_NUMBER, room=static_tokens(recipe))
    if kind == "quantized":
        return Storing(FP8, 2 * SCALE)
    if kind == "offloaded":
        return Storing(item, resident=RESIDENT_LAYERS)
    return Storing(item)


def grows_in_leaps(recipe: Recipe) -> bool:
    """Whether the highest decode step may be any of them, and not the first or the last.

    An int4 or int2 cache gathers tokens in full width and quantizes the whole anew once there are 128 of them
    (``cache_utils.QuantizedLayer``).
    """
    return recipe.kv_cache.kind == "quantized" and recipe.kv_cache.format in ("int4", "int2")


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
    return sum(widths(attention))


def expanded_elements_per_token(attention: Attention) -> int:
    """What the same token would take if keys and values were kept by head, latent attention expanded."""
    heads = attention.heads if attention.kv_lora_rank is not None else attention.kv_heads
    return heads * (attention.head_dim + attention.value_dim)


def stored_tokens(attention: Attention, tokens: int, *, decoded: bool, room: int | None = None) -> int:
    """Tokens whose bytes one layer's cache holds after ``tokens`` in all.

    A sliding window shows ``window - 1`` of them, but they are a view: after a prefill its storage is as long
    as the prompt, after a decode step it has ``window`` (``cache_utils.DynamicSlidingWindowLayer``). A static
    layer holds all of its ``room``, and no more than its window.
    """
    width = span(attention)
    if room is not None:
        return room if width is None else min(room, width)
    if width is None or not decoded:
        return tokens
    return min(tokens, width)


def cache_bytes(
    architecture: Architecture, batch: int, tokens: int, item: int | Storing, *, decoded: bool = False
) -> int:
    """Bytes on the device of a cache that holds ``tokens`` of each of ``batch`` sequences.

    Args:
        architecture: the model's numbers.
        batch: sequences.
        tokens: tokens of each.
        item: bytes an element in a plain dynamic cache, or how another cache stores it.
        decoded: whether a decode step has been taken since the prefill.
    """
    how = Storing(item) if isinstance(item, int) else item
    total = 0
    layers = architecture.layers
    if how.resident is not None:  # what comes back early is the layer after the last, and not the last itself
        layers = layers[: how.resident] if len(layers) > how.resident else ()
    for layer in layers:
        held = batch * stored_tokens(layer.attention, tokens, decoded=decoded, room=how.room)
        total += held * elements_per_token(layer.attention) * how.item
        total += how.beside or (WINDOW_NUMBER if span(layer.attention) else 0)
    return total


def widths(attention: Attention) -> tuple[int, int]:
    """Elements a token of the two tensors that a layer's cache holds: keys and values, or latent and key."""
    if attention.kv_lora_rank is not None:
        return attention.kv_lora_rank, attention.rope_head_dim or 0
    return attention.kv_heads * attention.head_dim, attention.kv_heads * attention.value_dim
