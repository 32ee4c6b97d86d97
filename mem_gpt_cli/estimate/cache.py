"""The key-value cache as a forward pass meets it (transformers' ``cache_utils.DynamicLayer``)."""

from __future__ import annotations

from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.books import KV_CACHE
from mem_gpt_cli.estimate.forward_pass import CacheLayer, Pass
from mem_gpt_cli.estimate.tape import Tape, Tensor
from mem_gpt_cli.kv_cache import cost as cache_cost
from mem_gpt_cli.model.architecture import Attention


def update_cache(run: Pass, part: Attention, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Append to the layer's cache (``cache_utils.DynamicLayer``); returns what attention reads.

    A sliding window keeps a view of its last ``window - 1`` tokens; its storage is as long as what it was cut
    from.
    """
    assert run.cache is not None
    held = run.cache.pop(index, None)
    tokens = (held.tokens if held else 0) + run.tokens
    width = cache_cost.span(part)
    kept = tokens if width is None else min(tokens, width - 1)
    keys = ops.concatenate(run.tape, (held.keys, k) if held else (k,), slot=KV_CACHE)
    old_values = held.values if held else None
    if width is None:
        held = None
    values = _appended(run, old_values, v, keys.item)
    window = held.window if held else window_number(run.tape, part)
    run.cache[index] = CacheLayer(_last(keys, kept, tokens), _last(values, kept, tokens), kept, window)
    return keys, values


def window_number(tape: Tape, part: Attention) -> Tensor | None:
    """The one number that ``DynamicSlidingWindowLayer`` holds on the device."""
    if cache_cost.span(part) is None:
        return None
    return tape.new(1, cache_cost.WINDOW_NUMBER, "tensor", KV_CACHE)


def _appended(run: Pass, old: Tensor | None, new: Tensor, item: int) -> Tensor:
    """The values, at least as wide as the keys: a layer's first, empty tensors take the keys' dtype."""
    new = ops.cast(run.tape, new, max(item, new.item))
    return ops.concatenate(run.tape, (old, new) if old else (new,), slot=KV_CACHE)


def _last(x: Tensor, kept: int, tokens: int) -> Tensor:
    return Tensor(x.numel // tokens * kept, x.item, x.storage)
