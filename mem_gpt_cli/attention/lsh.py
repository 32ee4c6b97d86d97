"""Attention by locality-sensitive hashing, after the Reformer (arXiv:2001.04451), for pretrained decoders.

A sequence is sorted several times, cut into chunks, and the queries of a chunk meet the keys of the chunk at
their place and of the one before. In the first round the order is the sequence's own: neighbours meet. In
each round after it the order is by bucket, then by position, and the bucket of a vector is the direction,
among random ones and their opposites, that it is nearest to. The softmax is that over all keys that a query
has met in any round.

Where the paper differs: its models share queries and keys, and take turns between layers that hash and layers
of neighbours. Pretrained decoders have projections for both, so both are hashed by the same directions, each
less its mean over the sequence (which moves no softmax, but without which most vectors of a head share a
bucket), and each is sorted on its own. A key that several rounds find counts once, as in the paper's formula.

No size depends on the data. Backward makes the scores again, round by round: nothing larger than queries,
keys, values and output outlives the forward pass.

Shapes: ``b`` sequences, ``n`` tokens, ``heads = g * s`` where ``s`` query heads share each of ``g`` key
heads, width ``d``; ``c`` chunks, each with ``s * chunk`` rows of queries and ``w`` keys. A position from
``cut.slots`` on is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mem_gpt_cli.attention.lsh_order import Chunks, Order, Places, by_key_head, orders, places_of
from mem_gpt_cli.attention.plan import Cut

_LEAST = torch.finfo(torch.float32).min


def attend(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, cut: Cut, scale: float, seed: int
) -> Tensor:
    """Causal attention of sequences to themselves: ``[b, n, heads, d]``.

    Args:
        query: ``[b, heads, n, d]``.
        key, value: ``[b, g, n, d]``.
        keep: ``[b, n]``, false where a token is padding; ``None``: none is.
        cut: how ``n`` tokens are hashed and cut.
        scale: of the scores.
        seed: of the random directions, so that every call takes the same.
    """
    return _Attention.apply(query, key, value, keep, cut, scale, seed)  # type: ignore[no-any-return,no-untyped-call]


class _Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    cut: Cut
    scale: float


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keep: Tensor | None,
        cut: Cut,
        scale: float,
        seed: int,
    ) -> Tensor:
        inputs = _Inputs(query, key, value, cut, scale)
        sorted_by = orders(query, key, keep, cut, seed)
        earlier: list[Chunks] = []
        output, total = _round(inputs, places_of(sorted_by[0], cut), earlier)
        for order in sorted_by[1:]:
            found, level = _round(inputs, places_of(order, cut), earlier)
            total = _merge(output, total, found, level)
            del found, level
        output = output.to(query.dtype)
        ctx.save_for_backward(
            query, key, value, output, total, *(part for order in sorted_by for part in order)
        )
        ctx.cut, ctx.scale = cut, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, total, *parts = ctx.saved_tensors
        inputs = _Inputs(query, key, value, ctx.cut, ctx.scale)
        inner = (gradient * output).sum(-1, dtype=torch.float32)
        earlier: list[Chunks] = []
        sums: list[Tensor] = []
        for i in range(0, len(parts), 2):
            places = places_of(Order(*parts[i : i + 2]), ctx.cut)
            _add_gradients(sums, inputs, (gradient, inner, total), places, earlier)
        return *(x.to(query.dtype).transpose(1, 2) for x in sums), None, None, None, None


def _round(inputs: _Inputs, places: Places, earlier: list[Chunks]) -> tuple[Tensor, Tensor]:
    """What a round finds, ``[b, n, heads, d]``, and its scores' log-sum-exp, ``[b, n, heads]``, in fp32.

    The round joins ``earlier``, whose finds are left out.
    """
    weights = _scores(inputs, _rows(inputs.query, places), _keys(inputs.key, places), places, earlier)
    highest = weights.amax(-1, keepdim=True)
    sums = weights.sub_(highest).exp_().sum(-1, keepdim=True)
    weights = weights.div_(sums).to(inputs.value.dtype)
    found = torch.matmul(weights, _keys(inputs.value, places))
    del weights
    level = highest.add_(sums.log_()).flatten()[places.rows]
    return found.flatten(0, 3)[places.rows].to(torch.float32), level


def _merge(output: Tensor, total: Tensor, found: Tensor, level: Tensor) -> Tensor:
    """Merge a round into the output, in place; returns the log-sum-exp of all scores so far."""
    merged = torch.logaddexp(total, level)
    output.mul_(total.sub_(merged).exp_()[..., None])
    output.addcmul_(found, level.sub_(merged).exp_()[..., None])
    return merged


def _scores(inputs: _Inputs, queries: Tensor, keys: Tensor, places: Places, earlier: list[Chunks]) -> Tensor:
    """Scores in fp32, ``[b, g, c, s * chunk, w]``, the least number where a query may not see a key, or has
    met it in an earlier round.
    """
    scores = torch.matmul(queries, keys.transpose(-2, -1)).to(torch.float32).mul_(inputs.scale)
    del queries, keys  # a forward pass holds them nowhere else
    scores.masked_fill_(_hidden(places, earlier, inputs.cut), _LEAST)
    earlier.append(places.chunks)
    return scores


def _hidden(places: Places, earlier: Sequence[Chunks], cut: Cut) -> Tensor:
    seeing = places.queries.flatten(3)
    seeing = torch.where(seeing < cut.length, seeing, -1)  # padding sees nothing
    hidden = places.keys[:, :, :, None] > seeing[..., None]
    for before in earlier:
        chunks = _rows(before.queries, places)[..., None]
        met = _keys(before.keys, places)[:, :, :, None]
        hidden.logical_or_(chunks == met)
        hidden.logical_or_(chunks.sub(1).remainder_(cut.chunks) == met)
    return hidden


def _rows(x: Tensor, places: Places) -> Tensor:
    """Rows of ``[b, heads, n, ...]`` in the round's order: ``[b, g, c, s * chunk, ...]``."""
    b, g, _, shared, _ = places.queries.shape
    first, second, third = (torch.arange(size, device=x.device) for size in (b, g, shared))
    at = by_key_head(x, g)[
        first[:, None, None, None, None],
        second[:, None, None, None],
        third[:, None],
        places.query_tokens,
    ]
    return at.flatten(3, 4)


def _keys(x: Tensor, places: Places) -> Tensor:
    """Rows of ``[b, g, n, ...]`` in the round's order: ``[b, g, c, w, ...]``."""
    first, second = (torch.arange(size, device=x.device) for size in x.shape[:2])
    return x[first[:, None, None, None], second[:, None, None], places.key_tokens]


def _add_gradients(
    sums: list[Tensor],
    inputs: _Inputs,
    outer: tuple[Tensor, Tensor, Tensor],
    places: Places,
    earlier: list[Chunks],
) -> None:
    """Add what one round gives to the gradients of queries, keys and values: ``[b, n, heads or g, d]``, fp32.

    Args:
        sums: the gradients so far, empty before the first round.
        inputs: queries, keys and values.
        outer: the output's gradient, its product with the output, and the log-sum-exp of all scores.
        places: of the round.
        earlier: the rounds before it; it joins them.
    """
    gradient, inner, total = (x.transpose(1, 2) for x in outer)
    queries, keys, wanted = (
        _rows(inputs.query, places),
        _keys(inputs.key, places),
        _rows(gradient, places),
    )
    weights = _scores(inputs, queries, keys, places, earlier).sub_(_rows(total, places)[..., None]).exp_()
    of_values = torch.matmul(weights.to(wanted.dtype).transpose(-2, -1), wanted)
    of_values = _of_tokens(of_values, places, inputs.cut)
    errors = torch.matmul(wanted, _keys(inputs.value, places).transpose(-2, -1)).to(torch.float32)
    errors.sub_(_rows(inner, places)[..., None]).mul_(weights).mul_(inputs.scale)
    del weights, wanted
    errors = errors.to(queries.dtype)
    of_keys = _of_tokens(torch.matmul(errors.transpose(-2, -1), queries), places, inputs.cut)
    del queries
    of_queries = torch.matmul(errors, keys).flatten(0, 3)[places.rows].to(torch.float32)
    del errors, keys
    new = [of_queries, of_keys, of_values]
    if not sums:
        sums.extend(new)
        return
    for total_of, part in zip(sums, new, strict=True):
        total_of.add_(part)


def _of_tokens(windows: Tensor, places: Places, cut: Cut) -> Tensor:
    """The gradients of the keys in each window, ``[b, g, c, w, d]``, as those of tokens: ``[b, n, g, d]``."""
    if cut.chunks > 1:
        windows = windows[..., cut.chunk :, :] + windows[..., : cut.chunk, :].roll(-1, dims=2)
    return windows.flatten(0, 3)[places.key_rows].to(torch.float32)
