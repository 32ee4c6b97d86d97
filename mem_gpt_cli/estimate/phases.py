"""The phases of both tasks, walked on paper: which moment of each has most bytes live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mem_gpt_cli.estimate.books import (
    GRADIENTS,
    INPUTS,
    KV_CACHE,
    OPTIMIZER_STATE,
    OPTIMIZER_TEMPORARIES,
    Ledger,
    Moment,
    Storage,
)
from mem_gpt_cli.estimate.cache import window_number
from mem_gpt_cli.estimate.decoder import INT64, WIDTHS, Decoder
from mem_gpt_cli.estimate.forward_pass import CacheLayer
from mem_gpt_cli.estimate.tape import Tensor
from mem_gpt_cli.kv_cache import cost as cache_cost
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.optimizers import cost as optimizer_cost
from mem_gpt_cli.quantization import cost as quantization_cost
from mem_gpt_cli.recipe.schema import Recipe

CUDA_GRAIN = 512


class Walk(NamedTuple):
    """What a walk finds for each phase, by name: its highest moment, and the most that each slot held."""

    peaks: Mapping[str, Moment]
    highest: Mapping[str, Sequence[int]]


def walk(architecture: Architecture, recipe: Recipe) -> Walk:
    """Walk the recipe's task through the architecture."""
    ledger = Ledger(rounding=CUDA_GRAIN if recipe.device.type == "cuda" else 1)
    ledger.enter("load")
    decoder = Decoder(architecture, recipe, ledger, stored_weights(architecture, recipe))
    tape = decoder.tape(recording=False)
    tokens = tape.new(recipe.workload.batch * recipe.lengths.prompt, INT64, "tokens", INPUTS)
    if recipe.task == "training":
        _train(decoder, tokens)
    else:
        _generate(decoder, tokens)
    return Walk(ledger.peaks, ledger.highest)


def stored_weights(architecture: Architecture, recipe: Recipe) -> int:
    """Bytes of the model's weights and buffers as the recipe stores them."""
    return quantization_cost.weight_bytes(
        architecture,
        recipe.quantization.scheme,  # type: ignore[arg-type]
        WIDTHS[recipe.model.dtype],
        rounding=CUDA_GRAIN if recipe.device.type == "cuda" else 1,
    )


def _generate(decoder: Decoder, tokens: Tensor) -> None:
    """The prefill, and those decode steps of which one is the largest: the last, and where a window cuts the
    cache the first, which still finds the prompt's.
    """
    lengths = decoder.recipe.lengths
    decoder.ledger.enter("prefill")
    cache: dict[int, CacheLayer] | None = {} if decoder.recipe.kv_cache.kind != "none" else None
    sequence = _next_token(decoder, tokens, cache, 0)
    del tokens
    if lengths.new < 2:
        return
    decoder.ledger.enter("decode")
    length = lengths.prompt + lengths.new - 2
    if lengths.new > 2 and cache is not None:
        if any(cache_cost.span(layer.attention) for layer in decoder.architecture.layers):
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


def _train(decoder: Decoder, tokens: Tensor) -> None:
    """One step with the optimizer's state where an earlier step has made it: the highest of its kind."""
    ledger, recipe = decoder.ledger, decoder.recipe
    sizes = parameter_bytes(decoder.architecture, decoder.item, ledger.rounding)
    state: list[Storage] = []
    ledger.enter("forward")
    if recipe.workload.steps > 1:
        state.append(Storage(ledger, OPTIMIZER_STATE, optimizer_cost.state_bytes(sizes), "zeros_like"))
    tape = decoder.tape(recording=True)
    hidden = decoder.forward(tape, tokens)
    held: Tensor | None = decoder.head(tape, hidden)
    assert held is not None
    loss = decoder.loss(tape, held, tokens.numel)
    del hidden
    tape.casts.clear()
    if not recipe.workload.hold_outputs:
        held = None
    ledger.enter("backward")
    tape.backward(loss)
    del loss
    rest = Storage(ledger, GRADIENTS, max(0, sum(sizes) - decoder.walked_gradient_bytes()), "gradients")
    ledger.enter("optimizer_step")
    if not state:
        state.append(Storage(ledger, OPTIMIZER_STATE, optimizer_cost.state_bytes(sizes), "zeros_like"))
    chosen = optimizer_cost.implementation(recipe.optimizer.implementation, recipe.device.type)
    Storage(ledger, OPTIMIZER_TEMPORARIES, optimizer_cost.step_bytes(sizes, chosen), "optimizer.step")
    del held, rest
    decoder.zero_grad()


def parameter_bytes(architecture: Architecture, item: int, rounding: int = 1) -> Sequence[int]:
    """Bytes of each trainable tensor, layer by layer, in the order in which a model names its parameters."""
    trainable = [tensor for tensor in architecture.tensors if tensor.kind != "buffer"]
    inside = [tensor for tensor in trainable if "*" in tensor.name]
    outside = [tensor for tensor in trainable if "*" not in tensor.name]
    first = [tensor for tensor in outside if tensor.kind == "embedding"]
    last = [tensor for tensor in outside if tensor.kind != "embedding"]
    depth = max((tensor.count for tensor in inside), default=0)
    in_order = [
        *first,
        *(tensor for index in range(depth) for tensor in inside if index < tensor.count),
        *last,
    ]
    return [-(-tensor.numel * (tensor.dtype_bytes or item) // rounding) * rounding for tensor in in_order]
