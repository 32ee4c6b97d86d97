"""A generation walked on paper: the prefill, and as many decode steps as tell the highest of them."""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.estimate.books import INPUTS, INT64, KV_CACHE
from mem_gpt_cli.estimate.cache import window_number
from mem_gpt_cli.estimate.decoder import Decoder
from mem_gpt_cli.estimate.forward_pass import CacheLayer
from mem_gpt_cli.estimate.tape import Tensor
from mem_gpt_cli.kv_cache import cost as cache_cost

EVERY_STEP_ON_A_CARD = 16
"""New tokens up to which each decode step is walked on a card."""


def generate(decoder: Decoder, tokens: Tensor) -> None:
    """The prefill, and those decode steps of which one is the largest: the last, and where a window cuts the
    cache the first, which still finds the prompt's.

    An allocator remembers what came before. So on a card all steps are walked where they are few, as the
    trace runs them, and else the first and the last.
    """
    lengths = decoder.recipe.lengths
    decoder.ledger.enter("prefill")
    cache: dict[int, CacheLayer] | None = {} if decoder.recipe.kv_cache.kind != "none" else None
    sequence = _next_token(decoder, tokens, cache, 0)
    del tokens
    if lengths.new < 2:
        return
    decoder.ledger.enter("decode")
    if decoder.cuda and lengths.new <= EVERY_STEP_ON_A_CARD:
        for past in range(lengths.prompt, lengths.prompt + lengths.new - 1):
            sequence = _decode(decoder, sequence, cache, past)
        return
    length = lengths.prompt + lengths.new - 2
    if lengths.new > 2 and cache is not None:
        if decoder.cuda or any(cache_cost.span(layer.attention) for layer in decoder.architecture.layers):
            sequence = _decode(decoder, sequence, cache, lengths.prompt)
        widths = [(layer.keys.item, layer.values.item) for layer in cache.values()]
        cache = None
        cache = filled_cache(decoder, length, widths)
    batch = decoder.recipe.workload.batch
    sequence = decoder.tape(recording=False).new(batch * (length + 1), INT64, "cat", INPUTS)
    _decode(decoder, sequence, cache, length)


def _decode(decoder: Decoder, sequence: Tensor, cache: dict[int, CacheLayer] | None, past: int) -> Tensor:
    """One decode step after ``past`` tokens: the newest token, or without a cache the whole sequence."""
    if cache is None:
        return _next_token(decoder, sequence, None, 0)
    newest = Tensor(decoder.recipe.workload.batch, INT64, sequence.storage)
    return _next_token(decoder, newest, cache, past)


def _next_token(decoder: Decoder, tokens: Tensor, cache: dict[int, CacheLayer] | None, past: int) -> Tensor:
    """One forward pass and the choice of the likeliest token."""
    tape = decoder.tape(recording=False)
    batch = decoder.recipe.workload.batch
    x = decoder.forward(tape, tokens, cache=cache, past=past)
    if decoder.recipe.workload.logits == "last":
        x = Tensor(batch * decoder.architecture.hidden, x.item, x.storage)
    logits = decoder.head(tape, x)
    del x
    tape.casts.clear()
    del logits
    return tape.new(tokens.numel + batch, INT64, "cat", INPUTS)


def filled_cache(decoder: Decoder, tokens: int, items: Sequence[tuple[int, int]]) -> dict[int, CacheLayer]:
    """The cache that ``tokens`` of each sequence, the last of them decoded, have left.

    ``items`` are the bytes of one element of each layer's keys and values.
    """
    tape, batch = decoder.tape(recording=False), decoder.recipe.workload.batch
    cache: dict[int, CacheLayer] = {}
    for index, layer in enumerate(decoder.architecture.layers):
        part = layer.attention
        held = cache_cost.stored_tokens(part, tokens, decoded=True)
        width = cache_cost.span(part)
        kept = held if width is None else min(held, width - 1)
        sides = []
        for width, item in zip(cache_cost.widths(part), items[index], strict=True):
            whole = tape.new(batch * held * width, item, "cat", KV_CACHE)
            sides.append(Tensor(batch * kept * width, item, whole.storage))
        cache[index] = CacheLayer(sides[0], sides[1], kept, window_number(tape, part))
    return cache
