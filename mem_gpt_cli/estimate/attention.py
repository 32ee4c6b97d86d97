"""The attention part of a layer: projections, cache, and scores by the kernel that really runs."""

from __future__ import annotations

from mem_gpt_cli.attention import cost as attention_cost
from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.estimate import attention_ops, ops
from mem_gpt_cli.estimate.books import ATTENTION, FP32, MASK, NORM, RESIDUAL, SCORES
from mem_gpt_cli.estimate.cache import update_cache
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.latent import latent_projections
from mem_gpt_cli.estimate.norms import rms_norm
from mem_gpt_cli.estimate.paged_attention import attend_paged
from mem_gpt_cli.estimate.rotary import rotate_both
from mem_gpt_cli.estimate.tape import Tape, Tensor
from mem_gpt_cli.kv_cache import cost as cache_cost
from mem_gpt_cli.model.architecture import Attention, Layer


def attention(run: Pass, layer: Layer, index: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The attention part of a layer: its output, and the weights where the code hands them on (eager)."""
    part = layer.attention
    with run.inside(ATTENTION, f"layers.{index}.attention"):
        if part.kv_lora_rank is not None:
            q, k, v, held = latent_projections(run, layer, index, x)
        else:
            held = ()
            q, k, v = projections(run, layer, index, x)
            if run.cache is not None:
                k, v = update_cache(run, part, index, k, v)
        if run.pages is not None:
            output, weights = attend_paged(run, part, q, k, v)
        else:
            output, weights = attend(run, part, q, k, v)
        output = attention_ops.from_heads(run.tape, output)
        output = run.project(
            output, f"layers.{index}.o", part.heads * part.value_dim, run.architecture.hidden
        )
        if run.dialect.drops_in_attention:
            with run.inside(RESIDUAL, f"layers.{index}"):
                output = ops.dropout(run.tape, output, run.dropout(layer.residual_dropout))
        del held, q, k, v
        return output, weights


def projections(run: Pass, layer: Layer, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values by head, rotated where the model rotates them."""
    tape, part, hidden = run.tape, layer.attention, run.architecture.hidden
    widths = (part.heads * part.head_dim, part.kv_heads * part.head_dim, part.kv_heads * part.value_dim)
    name = f"layers.{index}"
    if part.fused_qkv:
        mixed = run.project(x, f"{name}.qkv", hidden, sum(widths))
        parts = ops.split(tape, mixed, [run.rows * width for width in widths])
        q, k, v = (attention_ops.to_heads(tape, one) for one in parts)
        del mixed, parts
    else:
        norm_width = part.head_dim if part.qk_norm else None
        q = _projected(run, x, f"{name}.q", widths[0], norm_width, scaled=run.dialect.scales_queries)
        k = _projected(run, x, f"{name}.k", widths[1], norm_width)
        v = _projected(run, x, f"{name}.v", widths[2], None)
    if run.rotary and part.rotary_dim:
        q, k = rotate_both(run, part, q, k)
    return q, k, v


def _projected(
    run: Pass, x: Tensor, name: str, width: int, norm_width: int | None, *, scaled: bool = False
) -> Tensor:
    out = run.project(x, name, run.architecture.hidden, width)
    if scaled:
        out = ops.pointwise(run.tape, "mul", out)
    if norm_width:
        with run.inside(NORM, f"{name}_norm"):
            out = rms_norm(run, out, norm_width, f"{name}_norm")
    return attention_ops.to_heads(run.tape, out)


def attend(run: Pass, part: Attention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scores, softmax and weighted values, by the kernel that the backend comes down to."""
    heads = part.heads if part.kv_lora_rank is not None else part.kv_heads
    keys = k.numel // (run.batch * heads * part.head_dim)
    mask = run.masks.get(cache_cost.span(part))
    dropout = run.dropout(part.dropout)
    equal = part.head_dim == part.value_dim
    if run.hashes(cache_cost.span(part)):
        return _lsh(run, part, (q, k, v), dropout), None
    choice = attention_cost.kernel(run.backend, run.device, dropout=dropout, equal_widths=equal)
    if choice == "eager":
        return _eager(run, part, q, k, v, keys, mask, dropout)
    return _sdpa(run, part, q, k, v, keys, mask, dropout, fused=choice == "fused"), None


def _lsh(run: Pass, part: Attention, inputs: tuple[Tensor, Tensor, Tensor], dropout: float) -> Tensor:
    """LSH attention of a sequence to itself; raises ``UnsupportedError`` as the code does."""
    if dropout:
        raise UnsupportedError(attention_cost.LSH_NO_DROPOUT)
    from mem_gpt_cli.estimate.attention_lsh import Sizes, lsh_attention  # other runs start without it

    tape = run.tape
    assert run.lsh is not None
    if tape.autocast:
        inputs = tuple(ops.cast(tape, x, tape.autocast) for x in inputs)  # type: ignore[assignment]
    heads = part.heads if part.kv_lora_rank is not None else part.kv_heads
    cut = run.lsh.cut(run.tokens)
    return lsh_attention(
        tape, inputs, Sizes(cut, run.batch, part.heads, heads, part.head_dim, inputs[0].item)
    )


def _groups(part: Attention) -> int:
    """Query heads that share a key-value head; latent attention expands one for each."""
    return 1 if part.kv_lora_rank is not None else part.heads // part.kv_heads


def _repeat(run: Pass, part: Attention, x: Tensor) -> Tensor:
    """``repeat_kv``: every key-value head as often as query heads share it, copied unless it is the only one
    (then expanding it and reshaping is a view).
    """
    groups = _groups(part)
    if groups == 1:
        return x
    repeat = attention_ops.expand if part.kv_heads == 1 else attention_ops.repeat
    return repeat(run.tape, x, groups)


def _eager(
    run: Pass,
    part: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: int,
    mask: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    tape = run.tape
    expands = part.kv_heads == 1 and _groups(part) > 1  # no view merges an expanded head with the batch
    merges = run.merges(part.heads, run.tokens) or (expands and run.batch > 1)
    k, v = _repeat(run, part, k), _repeat(run, part, v)
    numel = run.batch * part.heads * run.tokens * keys
    outer, tape.slot = tape.slot, SCORES
    weights = _scaled_scores(tape, q, k, numel, merges)
    if mask is not None:
        weights = ops.add(tape, weights, mask)
    weights = _softmaxed(run, weights, q.item)
    weights = ops.dropout(tape, weights, dropout)
    tape.slot = outer
    return attention_ops.matmul(
        tape, weights, v, run.rows * part.heads * part.value_dim, merges=merges
    ), weights


def _scaled_scores(tape: Tape, q: Tensor, k: Tensor, numel: int, merges: bool) -> Tensor:
    return ops.pointwise(tape, "mul", attention_ops.matmul(tape, q, k, numel, merges=merges))


def _softmaxed(run: Pass, scores: Tensor, item: int) -> Tensor:
    upcast = run.dialect.softmax_fp32 or (run.tape.cuda is not None and run.tape.autocast)
    wide = FP32 if upcast else scores.item
    return ops.cast(run.tape, attention_ops.softmax(run.tape, scores, wide), item)


def _sdpa(
    run: Pass,
    part: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: int,
    mask: Tensor | None,
    dropout: float,
    *,
    fused: bool,
) -> Tensor:
    """``sdpa_attention_forward`` (transformers' ``integrations/sdpa_attention.py``) and what it calls.

    Beside a mask no grouped heads are asked for: keys and values are repeated, unless the heads of a single
    query can be packed. ``convert_boolean_attn_mask`` (aten/src/ATen/native/transformers/attention.cpp) then
    makes of the mask, in every call, one of the queries' dtype for each sequence; a fused kernel keeps it for
    backward.
    """
    tape = run.tape
    if mask is not None and run.tokens > 1:
        k, v = _repeat(run, part, k), _repeat(run, part, v)
    if tape.autocast:
        q, k, v = (ops.cast(tape, x, tape.autocast) for x in (q, k, v))
    if mask is not None:
        mask = tape.new(run.mask_elements(mask), q.item, "where", MASK)
    if tape.cuda:
        from mem_gpt_cli.estimate.cuda_attention import fused_attention  # other runs start without it

        output = fused_attention(run, part, q, k, v, keys, mask, dropout)
        return _math(run, part, q, k, v, keys, mask, dropout) if output is None else output
    if fused:
        rows = run.rows * part.heads
        scratch = attention_cost.flash_scratch_bytes(run.threads, run.tokens, keys, part.head_dim)
        return attention_ops.sdpa(tape, (q, k, v), rows, rows * part.value_dim, mask, scratch)
    return _math(run, part, q, k, v, keys, mask, dropout)


def _math(
    run: Pass,
    part: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: int,
    mask: Tensor | None,
    dropout: float,
) -> Tensor:
    """``_scaled_dot_product_attention_math`` (aten/src/ATen/native/transformers/attention.cpp)."""
    tape, item, merges = run.tape, q.item, run.merges(part.heads, run.tokens)
    q, k, v = (ops.cast(tape, x, FP32) for x in (q, k, v))
    q = ops.pointwise(tape, "mul", q)
    if mask is None and _groups(part) > 1:
        k, v = (attention_ops.repeat(tape, x, _groups(part)) for x in (k, v))
    outer, tape.slot = tape.slot, SCORES
    if mask is None and run.tokens > 1:
        mask = tape.new(run.tokens * keys, q.item, "where")
    scores = attention_ops.matmul(
        tape,
        q,
        ops.pointwise(tape, "mul", k),
        run.batch * part.heads * run.tokens * keys,
        merges=merges,
        casts=False,
    )
    if mask is not None and tape.results is not None:
        scores = ops.shift(tape, scores)  # torch adds it in place, but not to what may be kept
    weights = attention_ops.softmax(tape, scores, scores.item)
    tape.scratch(weights.numel, "_safe_softmax")
    del scores
    weights = ops.dropout(tape, weights, dropout)
    returned = ops.cast(tape, weights.handle(), item)
    tape.slot = outer
    output = attention_ops.matmul(
        tape, weights, v, run.rows * part.heads * part.value_dim, merges=merges, casts=False
    )
    output = ops.cast(tape, output, item)
    del returned, mask
    return output
