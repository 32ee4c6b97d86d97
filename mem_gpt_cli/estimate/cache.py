"""The key-value cache as a forward pass meets it: transformers' ``cache_utils``, layer by layer."""

from __future__ import annotations

from dataclasses import replace

from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.books import FP32, INT64, KV_CACHE
from mem_gpt_cli.estimate.forward_pass import CacheLayer, Pass
from mem_gpt_cli.estimate.tape import Tape, Tensor
from mem_gpt_cli.kv_cache import cost as cache_cost
from mem_gpt_cli.model.architecture import Attention


def update_cache(run: Pass, part: Attention, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Put a layer's new keys and values into its cache; returns what attention reads."""
    if run.room is not None:
        return _write_in_place(run, part, index, k, v)
    if run.cache_kind == "quantized":
        return _quantize_and_append(run, index, k, v)
    if run.cache_kind == "offloaded":
        return _append_and_offload(run, part, index, k, v)
    return _append(run, part, index, k, v, KV_CACHE)


def _append(run: Pass, part: Attention, index: int, k: Tensor, v: Tensor, slot: int) -> tuple[Tensor, Tensor]:
    """``cache_utils.DynamicLayer``: keys and values are concatenated anew.

    A sliding window keeps a view of its last ``window - 1`` tokens; its storage is as long as what it was cut
    from.
    """
    assert run.cache is not None
    held = run.cache.pop(index, None)
    tokens = (held.tokens if held else 0) + run.tokens
    width = cache_cost.span(part)
    kept = tokens if width is None else min(tokens, width - 1)
    keys = ops.concatenate(run.tape, (held.keys, k) if held else (k,), slot=slot)
    old_values = held.values if held else None
    beside = held.beside if held else window_number(run.tape, part)
    if width is None:
        held = None
    values = _appended(run, old_values, v, keys.item, slot)
    run.cache[index] = CacheLayer(_last(keys, kept, tokens), _last(values, kept, tokens), kept, beside)
    return keys, values


def window_number(tape: Tape, part: Attention) -> tuple[Tensor, ...]:
    """The one number that ``DynamicSlidingWindowLayer`` holds on the device."""
    if cache_cost.span(part) is None:
        return ()
    return (tape.new(1, cache_cost.WINDOW_NUMBER, "tensor", KV_CACHE),)


def _appended(run: Pass, old: Tensor | None, new: Tensor, item: int, slot: int) -> Tensor:
    """The values, at least as wide as the keys: a layer's first, empty tensors take the keys' dtype."""
    new = ops.cast(run.tape, new, max(item, new.item))
    return ops.concatenate(run.tape, (old, new) if old else (new,), slot=slot)


def _last(x: Tensor, kept: int, tokens: int) -> Tensor:
    return Tensor(x.numel // tokens * kept, x.item, x.storage)


def _append_and_offload(
    run: Pass, part: Attention, index: int, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """``cache_utils.Cache.update`` with offloading: the next layer comes, and this one goes when it was read.

    After the last layer comes the first, which so is on the device between two passes; it counts as the cache
    then, what comes and goes within a pass does not.
    """
    assert run.cache is not None
    following = (index + 1) % len(run.architecture.layers)
    if following in run.cache and following != index:
        run.cache[following] = on_device(run.tape, run.cache[following], KV_CACHE if not following else None)
    keys, values = _append(run, part, index, k, v, run.tape.slot)
    run.cache[index] = on_host(run.cache[index])
    return keys, values


def on_host(layer: CacheLayer) -> CacheLayer:
    """The layer with no bytes on the device but for its numbers."""
    keys, values = (Tensor(x.numel, x.item, x.storage.emptied()) for x in (layer.keys, layer.values))
    return replace(layer, keys=keys, values=values)


def on_device(tape: Tape, layer: CacheLayer, slot: int | None) -> CacheLayer:
    """The layer brought back from the host."""
    keys, values = (tape.new(x.numel, x.item, "_to_copy", slot) for x in (layer.keys, layer.values))
    return replace(layer, keys=keys, values=values)


def _write_in_place(run: Pass, part: Attention, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``cache_utils.StaticLayer``: written in place, and read as a whole.

    Only a prefill by SDPA without a mask reads no more than there is
    (``integrations/sdpa_attention.sdpa_attention_forward``). A layer with a window has room for that alone; a
    longer prompt is read as it is, and its end is copied.
    """
    assert run.cache is not None
    tape, room = run.tape, run.room_of(cache_cost.span(part))
    if index not in run.cache:
        sides = [tape.new(x.numel // run.tokens * room, x.item, "zeros", KV_CACHE) for x in (k, v)]
        beside = (tape.new(1, cache_cost.WINDOW_NUMBER, "tensor", KV_CACHE),)
        run.cache[index] = CacheLayer(sides[0], sides[1], 0, beside)
    held = run.cache[index]
    if cache_cost.span(part) is not None and run.past + run.tokens > room:
        return _roll(run, held, k, v)
    steps = tape.new(run.tokens, INT64, "arange")
    steps = tape.new(run.tokens, INT64, "add")
    held.tokens = run.past + run.tokens
    del steps
    if run.backend != "eager" and run.tokens > 1 and not run.padded:
        return _last(held.keys, run.tokens, room), _last(held.values, run.tokens, room)
    return held.keys, held.values


def _roll(run: Pass, held: CacheLayer, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A full window (``cache_utils.StaticSlidingWindowLayer``): one token moves all others by one."""
    if run.tokens > 1:
        return k, v
    moved = [run.tape.new(x.numel, x.item, "roll") for x in (held.keys, held.values)]
    del moved
    return held.keys, held.values


def _quantize_and_append(run: Pass, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``cache_utils.Fp8QuantizedLayer``: a byte an element, and a scale for all keys and one for all values.

    A prefill attends to the keys and values as they are; a decode step to the whole cache, made wide again
    in fp32 and then as wide as the first keys were.
    """
    assert run.cache is not None
    held = run.cache.pop(index, None)
    tokens = (held.tokens if held else 0) + run.tokens
    if held is None:
        scales = []
        sides = []
        for x in (k, v):
            scales.append(_scale(run.tape, x))
            sides.append(_narrow(run.tape, x))
        run.cache[index] = CacheLayer(sides[0], sides[1], tokens, tuple(scales), k.item)
        return k, v
    new = [_narrow(run.tape, x) for x in (k, v)]
    keys, values = (
        ops.concatenate(run.tape, pair, slot=KV_CACHE)
        for pair in zip((held.keys, held.values), new, strict=True)
    )
    run.cache[index] = CacheLayer(keys, values, tokens, held.beside, held.item)
    return _wide(run.tape, keys, held.item), _wide(run.tape, values, held.item)


def _scale(tape: Tape, x: Tensor) -> Tensor:
    """The largest magnitude over the largest number of fp8, one number in fp32."""
    magnitudes = tape.new(x.numel, x.item, "abs")
    if tape.cuda:
        tape.buffers(tape.cuda.largest(x.numel, x.item), "amax")
    del magnitudes
    return tape.new(1, FP32, "clamp", KV_CACHE)


def _narrow(tape: Tape, x: Tensor) -> Tensor:
    """Divided by the scale in fp32 and rounded to fp8."""
    wide = ops.cast(tape, x, FP32)
    wide = tape.new(x.numel, FP32, "div")
    return tape.new(x.numel, cache_cost.FP8, "_to_copy", KV_CACHE) if wide else x


def _wide(tape: Tape, x: Tensor, item: int) -> Tensor:
    """What fp8 stands for, ``item`` bytes an element."""
    wide = tape.new(x.numel, FP32, "_to_copy")
    wide = tape.new(x.numel, FP32, "mul")
    return ops.cast(tape, wide, item)
