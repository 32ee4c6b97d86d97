"""Continuous batching walked on paper: the pool, exactly, and the largest of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.books import FP32, INPUTS, INT64, KV_CACHE, MASK, WIDTHS
from mem_gpt_cli.estimate.decoder import Decoder
from mem_gpt_cli.estimate.paged_attention import Pages
from mem_gpt_cli.estimate.tape import Tensor
from mem_gpt_cli.kv_cache.cost import span
from mem_gpt_cli.kv_cache.paged_budget import pool_within
from mem_gpt_cli.kv_cache.paged_families import why_not_family
from mem_gpt_cli.kv_cache.paged_pool import Pool, PoolBytes
from mem_gpt_cli.kv_cache.paged_schedule import Step, schedule
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.recipe.paging import Paging
from mem_gpt_cli.recipe.schema import Recipe

STATIC = "static inputs"


def serve(decoder: Decoder) -> None:
    """The pool in ``load``; then, of the steps of each phase, those that no other is as large as."""
    recipe, arch, tape = decoder.recipe, decoder.architecture, decoder.tape(recording=False)
    pool = pool_of(arch, recipe, sum(storage.nbytes for storage in decoder.weights))
    sizes = pool_bytes(arch, recipe, pool)
    held = [tape.new(sizes.cache, 1, STATIC, KV_CACHE)]
    held += [tape.new(nbytes, 1, STATIC, INPUTS) for nbytes in sizes.inputs]
    mask = tape.new(sizes.mask // decoder.item, decoder.item, STATIC, MASK)
    steps = list(schedule(Paging.of(recipe)))
    for reading, phase in ((True, "prefill"), (False, "decode")):
        largest = undominated(step for step in steps if step.reading is reading)
        if largest:
            decoder.ledger.enter(phase)
        for step in largest:
            _step(decoder, step, mask, min(step.keys, sizes.slots))
    del held


def pool_of(arch: Architecture, recipe: Recipe, weight_bytes: int) -> Pool:
    """The pool of a recipe whose model is known.

    Raises:
        UnsupportedError: for a family that continuous batching cannot run.
        RecipeError: for a budget that leaves too few pages.
    """
    reason = why_not_family(arch.model_type, any(span(layer.attention) for layer in arch.layers))
    if reason is not None:
        raise UnsupportedError(f"kv_cache.kind: paged cannot run {arch.model_type}: {reason}")
    return pool_within(recipe, arch, weight_bytes)


def pool_bytes(arch: Architecture, recipe: Recipe, pool: Pool) -> PoolBytes:
    """The sizes of a pool of this model."""
    part = arch.layers[0].attention
    return PoolBytes(pool, len(arch.layers), part.kv_heads, part.head_dim, WIDTHS[recipe.model.dtype])


def undominated(steps: Iterable[Step]) -> Sequence[Step]:
    """Steps of which no other has as many queries, keys and chosen tokens, each size once."""
    unlike = {(step.queries, step.keys, step.chosen): step for step in steps}
    return [
        step
        for size, step in unlike.items()
        if not any(
            other != size and all(a >= b for a, b in zip(other, size, strict=True)) for other in unlike
        )
    ]


def _step(decoder: Decoder, step: Step, mask: Tensor, keys: int) -> None:
    """One batch: its mask drawn, the forward pass, the likeliest token of each request that gets one."""
    tape, arch = decoder.tape(recording=False), decoder.architecture
    drawn = [queries * seen * (2 if queries > 1 else 1) for queries, seen in step.blocks]
    if not decoder.cuda:  # the CPU's kernel copies a part of the mask
        tape.scratch(max(drawn) * decoder.item, "triu_")
    tokens = tape.new(0, INT64, STATIC, INPUTS)
    tokens.numel = step.queries  # a view of the static inputs
    x = decoder.forward(tape, tokens, past=step.past, pages=Pages(keys, step.past, mask))
    chosen = tape.new(step.chosen * arch.hidden, x.item, "index", INPUTS)
    logits = decoder.head(tape, chosen)
    del x, chosen
    logits = ops.cast(tape, logits, FP32)
    tape.new(step.chosen, INT64, "argmax", INPUTS)
    del logits
