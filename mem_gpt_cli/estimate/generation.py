"""A generation walked on paper: the prefill, and as many decode steps as tell the highest of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mem_gpt_cli.attention.cost import BOOL
from mem_gpt_cli.estimate.books import INPUTS, INT64, KV_CACHE
from mem_gpt_cli.estimate.cache import on_host
from mem_gpt_cli.estimate.decoder import Decoder
from mem_gpt_cli.estimate.forward_pass import CacheLayer
from mem_gpt_cli.estimate.tape import Tensor
from mem_gpt_cli.kv_cache import cost as cache_cost

EVERY_STEP_ON_A_CARD = 16
"""New tokens up to which each decode step is walked on a card."""

Cache = dict[int, CacheLayer]


class State(NamedTuple):
    """All tokens so far, what the cache holds of them, and which of them count where some are padding."""

    sequence: Tensor
    cache: Cache | None
    mask: Tensor | None


def generate(decoder: Decoder, tokens: Tensor) -> None:
    """The prefill, and those decode steps of which one is the largest: the last, and where a window cuts the
    cache the first, which still finds the prompt's.

    An allocator remembers what came before. So on a card all steps are walked where they are few, as the
    trace runs them, and else the first and the last.
    """
    lengths, batch = decoder.recipe.lengths, decoder.recipe.workload.batch
    decoder.ledger.enter("prefill")
    mask = _padding(decoder, tokens.numel)
    cache: Cache | None = None if decoder.recipe.kv_cache.kind == "none" else {}
    state = _next_token(decoder, State(tokens, cache, mask), tokens, 0)
    del tokens, mask
    if lengths.new < 2:
        return
    decoder.ledger.enter("decode")
    if decoder.cuda and lengths.new <= EVERY_STEP_ON_A_CARD:
        for past in range(lengths.prompt, lengths.prompt + lengths.new - 1):
            state = _decode(decoder, state, past)
        return
    length = lengths.prompt + lengths.new - 2
    if lengths.new > 2 and cache is not None:
        if decoder.cuda or any(cache_cost.span(layer.attention) for layer in decoder.architecture.layers):
            state = _decode(decoder, state, lengths.prompt)
        kinds = {index: LayerKind.of(layer) for index, layer in cache.items()}
        cache = None
        state = state._replace(cache=None)
        cache = filled_cache(decoder, length, kinds)
    tape = decoder.tape(recording=False)
    mask = tape.new(batch * (length + 1), INT64, "cat", INPUTS) if decoder.padded else None
    state = State(tape.new(batch * (length + 1), INT64, "cat", INPUTS), cache, mask)
    _decode(decoder, state, length)


def _padding(decoder: Decoder, numel: int) -> Tensor | None:
    """The attention mask of unlike prompts, ``numel`` of 0 and 1 (``kv_cache.padding.left_padding``)."""
    if not decoder.padded:
        return None
    tape = decoder.tape(recording=False)
    begins = tape.new(decoder.recipe.workload.batch, INT64, "tensor", INPUTS)
    counts = tape.new(numel, BOOL, "ge", INPUTS)
    mask = tape.new(numel, INT64, "_to_copy", INPUTS)
    del begins, counts
    return mask


def _decode(decoder: Decoder, state: State, past: int) -> State:
    """One decode step after ``past`` tokens: the newest token, or without a cache the whole sequence."""
    if state.cache is None:
        return _next_token(decoder, state, state.sequence, 0)
    newest = Tensor(decoder.recipe.workload.batch, INT64, state.sequence.storage)
    return _next_token(decoder, state, newest, past)


def _next_token(decoder: Decoder, state: State, tokens: Tensor, past: int) -> State:
    """One forward pass and the choice of the likeliest token."""
    tape = decoder.tape(recording=False)
    batch = decoder.recipe.workload.batch
    x = decoder.forward(tape, tokens, cache=state.cache, past=past)
    if decoder.recipe.workload.logits == "last":
        x = Tensor(batch * decoder.architecture.hidden, x.item, x.storage)
    logits = decoder.head(tape, x)
    del x
    tape.casts.clear()
    del logits
    longer = past * batch + tokens.numel + batch
    sequence = tape.new(longer, INT64, "cat", INPUTS)
    mask = tape.new(longer, INT64, "cat", INPUTS) if state.mask else None
    return State(sequence, state.cache, mask)


class LayerKind(NamedTuple):
    """How a layer of a cache keeps things, whatever the number of tokens."""

    widths: tuple[int, int]
    beside: tuple[int, ...]
    item: int

    @classmethod
    def of(cls, layer: CacheLayer) -> LayerKind:
        """The widths of its elements in bytes, and those of the numbers that it holds beside them."""
        return cls(
            (layer.keys.item, layer.values.item), tuple(number.item for number in layer.beside), layer.item
        )


def filled_cache(decoder: Decoder, tokens: int, kinds: Mapping[int, LayerKind]) -> Cache:
    """The cache that ``tokens`` of each sequence, the last of them decoded, have left."""
    tape, batch = decoder.tape(recording=False), decoder.recipe.workload.batch
    cache: Cache = {}
    for index, layer in enumerate(decoder.architecture.layers):
        part, kind = layer.attention, kinds[index]
        held = cache_cost.stored_tokens(part, tokens, decoded=True, room=decoder.room)
        width = cache_cost.span(part)
        kept = held if width is None or decoder.room else min(held, width - 1)
        sides = []
        for elements, item in zip(cache_cost.widths(part), kind.widths, strict=True):
            whole = tape.new(batch * held * elements, item, "cat", KV_CACHE)
            sides.append(Tensor(batch * kept * elements, item, whole.storage))
        beside = tuple(tape.new(1, nbytes, "tensor", KV_CACHE) for nbytes in kind.beside)
        cache[index] = CacheLayer(sides[0], sides[1], kept, beside, kind.item)
        del sides
        if index and decoder.recipe.kv_cache.kind == "offloaded":
            cache[index] = on_host(cache[index])
    return cache
