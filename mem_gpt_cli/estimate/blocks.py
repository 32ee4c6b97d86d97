"""One decoder layer, written down operation by operation as transformers' modelling code runs it.

Python's own variables decide how long a buffer lives, here as there: a name that the modelling code keeps is
kept here. Sources: ``transformers/models/{gpt2,llama,opt,gemma3,deepseek_v3}/modeling_*.py``.
"""

from __future__ import annotations

from mem_gpt_cli.attention import cost as attention_cost
from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.activation import activate
from mem_gpt_cli.estimate.forward_pass import CacheLayer, Pass
from mem_gpt_cli.estimate.tape import ATTENTION, FP32, KV_CACHE, MLP, NORM, SCORES, Tape, Tensor
from mem_gpt_cli.model.architecture import Attention, Layer, Mlp


def block(run: Pass, layer: Layer, index: int, x: Tensor) -> Tensor:
    """One layer: ``x`` is the residual stream, ``[batch, tokens, hidden]``."""
    name = f"layers.{index}"
    if layer.parallel:
        return _parallel_block(run, layer, index, x)
    position = run.dialect.norm_position
    residual = x
    if position != "post":
        x = norm(run, layer, x, f"{name}.norm_1")
    x, weights = attention(run, layer, index, x)
    x = ops.dropout(run.tape, x, layer.residual_dropout if run.training else 0)
    held = x if run.dialect.holds_attention_output else None
    if position != "pre":
        x = norm(run, layer, x, f"{name}.norm_1_post")
    x = ops.add(run.tape, residual, x)
    residual = x
    if position != "post":
        x = norm(run, layer, x, f"{name}.norm_2")
    x = mlp(run, layer, index, x)
    if position != "pre":
        x = norm(run, layer, x, f"{name}.norm_2_post")
    x = ops.add(run.tape, residual, x)
    del weights, held
    return x


def _parallel_block(run: Pass, layer: Layer, index: int, x: Tensor) -> Tensor:
    """Attention and MLP from one input (GPT-J, GPT-NeoX, Falcon, Phi)."""
    name = f"layers.{index}"
    residual = x
    x = norm(run, layer, x, f"{name}.norm_1")
    attended, weights = attention(run, layer, index, x)
    if layer.norms > 1:
        x = norm(run, layer, residual, f"{name}.norm_2")
    x = mlp(run, layer, index, x)
    del weights
    return ops.add(run.tape, ops.add(run.tape, x, attended), residual)


def norm(run: Pass, layer: Layer, x: Tensor, name: str, width: int | None = None) -> Tensor:
    """The layer's normalisation of ``x`` over its last ``width`` elements."""
    width = width or run.architecture.hidden
    with run.inside(NORM, name):
        if layer.norm == "layernorm":
            return ops.layer_norm(run.tape, x, x.numel // width)
        return rms_norm(run, x, width, name)


def rms_norm(run: Pass, x: Tensor, width: int, name: str) -> Tensor:
    """Root-mean-square norm in fp32 (arXiv:1910.07467), as LlamaRMSNorm and Gemma3RMSNorm write it."""
    tape, item = run.tape, x.item
    weight = run.weight(name, width)
    wide = ops.cast(tape, x, FP32)
    scaled = ops.multiply(tape, wide, _inverse_root(tape, wide, x.numel // width))
    del wide
    if run.dialect.rms == "gemma":
        scaled = ops.multiply(tape, scaled, ops.shift(tape, ops.cast(tape, weight, FP32)))
        return ops.cast(tape, scaled, item)
    scaled = ops.cast(tape, scaled, item)
    return ops.multiply(tape, scaled, weight)


def _inverse_root(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """``rsqrt(mean(x ** 2) + eps)``, one number a row."""
    square = ops.pointwise(tape, "pow", x, keeps_input=True)
    mean = ops.reduce_mean(tape, square, rows)
    del square
    return ops.pointwise(tape, "rsqrt", ops.shift(tape, mean), keeps_output=True)


def mlp(run: Pass, layer: Layer, index: int, x: Tensor) -> Tensor:
    """The feed-forward part of a layer, a mixture of experts included."""
    with run.inside(MLP, f"layers.{index}.mlp"):
        if layer.mlp.experts:
            from mem_gpt_cli.estimate.experts import mixture

            return mixture(run, layer, index, x)
        x = dense_mlp(run, layer.mlp, index, x, layer.mlp.intermediate, "mlp")
        return ops.dropout(run.tape, x, layer.residual_dropout if run.training else 0)


def dense_mlp(run: Pass, part: Mlp, index: int, x: Tensor, width: int, name: str) -> Tensor:
    """``down(act(gate(x)) * up(x))`` or ``down(act(up(x)))``."""
    tape, hidden = run.tape, run.architecture.hidden
    name = f"layers.{index}.{name}"
    if part.gated:
        inner = _gated(run, part, x, width, name)
    else:
        inner = ops.linear(tape, x, run.weight(f"{name}.up", hidden * width), width)
        inner = activate(tape, part.activation, inner)
    return ops.linear(tape, inner, run.weight(f"{name}.down", hidden * width), hidden)


def _gated(run: Pass, part: Mlp, x: Tensor, width: int, name: str) -> Tensor:
    tape, hidden = run.tape, run.architecture.hidden
    gate = ops.linear(tape, x, run.weight(f"{name}.gate", hidden * width), width)
    gate = activate(tape, part.activation, gate)
    up = ops.linear(tape, x, run.weight(f"{name}.up", hidden * width), width)
    return ops.multiply(tape, gate, up)


def attention(run: Pass, layer: Layer, index: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The attention part of a layer: its output, and the weights where the code hands them on (eager)."""
    part = layer.attention
    with run.inside(ATTENTION, f"layers.{index}.attention"):
        q, k, v = projections(run, layer, index, x)
        if run.cache is not None:
            k, v = update_cache(run, part, index, k, v)
        output, weights = attend(run, part, q, k, v)
        output = ops.from_heads(run.tape, output)
        hidden = run.architecture.hidden
        output = ops.linear(
            run.tape, output, run.weight(f"layers.{index}.o", hidden * part.heads * part.value_dim), hidden
        )
        return output, weights


def projections(run: Pass, layer: Layer, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values by head, rotated where the model rotates them."""
    tape, part, hidden = run.tape, layer.attention, run.architecture.hidden
    widths = (part.heads * part.head_dim, part.kv_heads * part.head_dim, part.kv_heads * part.value_dim)
    name = f"layers.{index}"
    if part.fused_qkv:
        mixed = ops.linear(tape, x, run.weight(f"{name}.qkv", hidden * sum(widths)), sum(widths))
        parts = ops.split(tape, mixed, [run.rows * width for width in widths])
        q, k, v = (ops.to_heads(tape, one) for one in parts)
        del mixed, parts
    else:
        q = _projected(run, layer, x, f"{name}.q", widths[0], part.head_dim if part.qk_norm else None)
        k = _projected(run, layer, x, f"{name}.k", widths[1], part.head_dim if part.qk_norm else None)
        v = _projected(run, layer, x, f"{name}.v", widths[2], None)
    if run.rotary is not None and part.rotary_dim:
        q, k = rotate_both(run, part, q, k)
    return q, k, v


def _projected(run: Pass, layer: Layer, x: Tensor, name: str, width: int, norm_width: int | None) -> Tensor:
    out = ops.linear(run.tape, x, run.weight(name, run.architecture.hidden * width), width)
    if norm_width:
        with run.inside(NORM, f"{name}_norm"):
            out = rms_norm(run, out, norm_width, f"{name}_norm")
    return ops.to_heads(run.tape, out)


def rotate_both(run: Pass, part: Attention, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv:2104.09864) on queries and keys, the rest of a head passing where it is partial."""
    share = part.rotary_dim / part.head_dim
    if share == 1:
        return rotate(run, q), rotate(run, k)
    q_turn, q_pass = _cut(run.tape, q, share)
    k_turn, k_pass = _cut(run.tape, k, share)
    q_turn, k_turn = rotate(run, q_turn), rotate(run, k_turn)
    q = ops.concatenate(run.tape, (q_turn, q_pass))
    k = ops.concatenate(run.tape, (k_turn, k_pass))
    return q, k


def _cut(tape: Tape, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    turned = int(x.numel * share)
    return ops.part(tape, x, turned), ops.part(tape, x, x.numel - turned)


def rotate(run: Pass, x: Tensor) -> Tensor:
    """``x * cos + rotate_half(x) * sin``."""
    assert run.rotary is not None
    cos, sin = run.rotary
    tape = run.tape
    turned = ops.multiply(tape, x, cos)
    crossed = ops.multiply(tape, _rotate_half(tape, x), sin)
    return ops.add(tape, turned, crossed)


def _rotate_half(tape: Tape, x: Tensor) -> Tensor:
    first, second = ops.part(tape, x, x.numel // 2), ops.part(tape, x, x.numel - x.numel // 2)
    out = ops.concatenate(tape, (ops.pointwise(tape, "neg", second), first))
    out.permuted = x.permuted
    return out


def update_cache(run: Pass, part: Attention, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Append to the layer's cache (``cache_utils.DynamicLayer``); returns what attention reads.

    A window keeps a view of its last ``window - 1`` tokens, whose storage is as long as what it was cut from.
    """
    assert run.cache is not None
    held = run.cache.pop(index, None)
    tokens = (held.tokens if held else 0) + run.tokens
    kept = tokens if part.window is None else min(tokens, part.window - 1)
    keys = ops.concatenate(run.tape, (held.keys, k) if held else (k,), slot=KV_CACHE)
    old_values = held.values if held else None
    if part.window is None:
        held = None
    values = ops.concatenate(run.tape, (old_values, v) if old_values else (v,), slot=KV_CACHE)
    run.cache[index] = CacheLayer(_last(keys, kept, tokens), _last(values, kept, tokens), kept)
    return keys, values


def _last(x: Tensor, kept: int, tokens: int) -> Tensor:
    return Tensor(x.numel // tokens * kept, x.item, x.storage)


def attend(run: Pass, part: Attention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scores, softmax and weighted values, by the kernel that the backend comes down to."""
    keys = k.numel // (run.batch * part.kv_heads * part.head_dim)
    mask = run.masks.get(part.window)
    dropout = part.dropout if run.training else 0.0
    choice = attention_cost.kernel(
        run.backend,
        run.device,
        dropout=dropout,
        equal_widths=part.head_dim == part.value_dim,
        masked=mask is not None,
        query_bytes=q.item,
    )
    if choice == "eager":
        return _eager(run, part, q, k, v, keys, mask, dropout)
    return _sdpa(run, part, q, k, v, keys, mask, dropout, fused=choice == "fused"), None


def _repeat(run: Pass, part: Attention, x: Tensor) -> Tensor:
    """``repeat_kv``: a copy with every key-value head as often as query heads share it."""
    groups = part.heads // part.kv_heads
    return x if groups == 1 else ops.repeat(run.tape, x, groups)


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
    tape, merges = run.tape, run.merges(part.heads, run.tokens)
    k, v = _repeat(run, part, k), _repeat(run, part, v)
    numel = run.batch * part.heads * run.tokens * keys
    outer, tape.slot = tape.slot, SCORES
    weights = _scaled_scores(tape, q, k, numel, merges)
    if mask is not None:
        weights = ops.add(tape, weights, mask)
    weights = _softmaxed(run, weights, q.item)
    weights = ops.dropout(tape, weights, dropout)
    tape.slot = outer
    return ops.matmul(tape, weights, v, run.rows * part.heads * part.value_dim, merges=merges), weights


def _scaled_scores(tape: Tape, q: Tensor, k: Tensor, numel: int, merges: bool) -> Tensor:
    return ops.pointwise(tape, "mul", ops.matmul(tape, q, k, numel, merges=merges))


def _softmaxed(run: Pass, scores: Tensor, item: int) -> Tensor:
    wide = FP32 if run.dialect.softmax_fp32 else scores.item
    return ops.cast(run.tape, ops.softmax(run.tape, scores, wide), item)


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
    tape = run.tape
    if tape.autocast:
        q, k, v = (ops.cast(tape, x, tape.autocast) for x in (q, k, v))
    if fused:
        rows = run.rows * part.heads
        return ops.sdpa(tape, q, k, v, rows, rows * part.value_dim, mask.storage if mask else None)
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
    k, v = _repeat(run, part, k), _repeat(run, part, v)
    outer, tape.slot = tape.slot, SCORES
    if mask is None and run.tokens > 1:
        mask = tape.new(run.tokens * keys, q.item, "where")
    scores = ops.matmul(
        tape, q, ops.pointwise(tape, "mul", k), run.batch * part.heads * run.tokens * keys, merges=merges
    )
    weights = ops.softmax(tape, scores, scores.item)
    del scores, mask
    weights = ops.dropout(tape, weights, dropout)
    tape.slot = outer
    output = ops.matmul(tape, weights, v, run.rows * part.heads * part.value_dim, merges=merges)
    return ops.cast(tape, output, item)
