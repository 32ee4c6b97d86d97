"""Attention by locality-sensitive hashing, after the Reformer (arXiv:2001.04451), for pretrained decoders.

What differs from the paper, because queries and keys are projections of their own here:

- both are hashed by the same random directions, each is sorted by (bucket, position) on its own, and the
  chunk at one place of the queries' order meets the keys at that place and at the one before;
- a token always attends to itself, as a round of its own: no row is ever empty;
- a key counts by the share of rounds that find it, so that one bucket is full attention in any number of
  rounds.

Nothing depends on the data but the order: every size is known beforehand. Backward makes the scores again,
round by round, so that nothing larger than queries, keys, values and output outlives the forward pass.

Shapes: ``b`` sequences, ``n`` tokens, ``heads = g * s`` where ``s`` query heads share each of ``g`` key
heads, width ``d``; ``c`` chunks, each with ``s * chunk`` rows of queries and ``w`` keys. A position from
``cut.slots`` on is padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mem_gpt_cli.attention.plan import Cut


class Order(NamedTuple):
    """One round: positions of queries, ``[b, heads, slots]``, and of keys, ``[b, g, slots]``, as sorted."""

    queries: Tensor
    keys: Tensor


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
        orders = _orders(query, key, keep, cut, seed)
        total = _own_scores(query, key, scale)
        output = _own_values(value, query.shape[1])
        for order in orders:
            _add_round(output, total, order, (query, key, value), cut, scale)
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, total, *(part for order in orders for part in order))
        ctx.cut, ctx.scale = cut, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, total, *parts = ctx.saved_tensors
        orders = [Order(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
        inner = (gradient * output).sum(-1, dtype=torch.float32)
        grads = _own_gradients(gradient, inner, total, (query, key, value), ctx.scale)
        for order in orders:
            _add_gradients(grads, gradient, inner, total, order, (query, key, value), ctx.cut, ctx.scale)
        return *(g.to(query.dtype) for g in grads), None, None, None, None


def _orders(query: Tensor, key: Tensor, keep: Tensor | None, cut: Cut, seed: int) -> list[Order]:
    """The order of every round; one chunk needs none but that of the positions."""
    b, heads, n, d = query.shape
    positions = torch.arange(cut.slots, device=query.device)
    if keep is not None:
        padding = torch.nn.functional.pad(~keep, (0, cut.slots - n)) if cut.slots > n else ~keep
        positions = positions + cut.slots * padding[:, None]
    if not cut.hashes:
        return [Order(*(positions.expand(b, count, cut.slots) for count in (heads, key.shape[1])))]
    generator = torch.Generator(query.device).manual_seed(seed)
    orders = []
    for _ in range(cut.rounds):
        directions = torch.randn(
            d, cut.directions, generator=generator, device=query.device, dtype=query.dtype
        )
        orders.append(Order(*(_sorted(_buckets(x, directions, cut), positions, cut) for x in (query, key))))
    return orders


def _buckets(x: Tensor, directions: Tensor, cut: Cut) -> Tensor:
    """The bucket of each vector, ``[b, heads, n]``: which direction, or its opposite, is the nearest.

    Only the angle counts, so the vectors need not be normalised.
    """
    near = torch.matmul(x, directions)
    buckets, begin = None, 0
    for width in cut.hashes:
        part = near[..., begin : begin + width // 2]
        nearest = torch.cat([part, -part], dim=-1).argmax(dim=-1)
        buckets = nearest if buckets is None else buckets.mul_(width).add_(nearest)
        begin += width // 2
    assert buckets is not None
    return buckets


def _sorted(buckets: Tensor, positions: Tensor, cut: Cut) -> Tensor:
    """Positions by bucket, then by place in the sequence; what fills the last chunk up comes last."""
    if cut.slots > cut.length:
        buckets = torch.nn.functional.pad(buckets, (0, cut.slots - cut.length), value=cut.buckets)
    keys = buckets * (2 * cut.slots) + positions
    return keys.sort(dim=-1).values.remainder_(2 * cut.slots)


def _own_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Each query with the key of its own place, ``[b, n, heads]`` in fp32."""
    return _products(query, key).mul_(scale).flatten(1, 2).transpose(1, 2)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of ``[b, heads, n, d]`` with the rows that they share, ``[b, g, n, d]``: in fp32, as
    ``[b, g, s, n]``.
    """
    return (_by_key_head(x, y.shape[1]) * y[:, :, None]).sum(-1, dtype=torch.float32)


def _by_key_head(x: Tensor, g: int) -> Tensor:
    """``[b, heads, ...]`` as ``[b, g, s, ...]``."""
    return x.view(x.shape[0], g, -1, *x.shape[2:])


def _own_values(value: Tensor, heads: int) -> Tensor:
    """The value of each token once for every query head, ``[b, n, heads, d]`` in fp32."""
    b, g, n, d = value.shape
    output = torch.empty(b, n, g, heads // g, d, dtype=torch.float32, device=value.device)
    return output.copy_(value.transpose(1, 2)[:, :, :, None]).flatten(2, 3)


class _Round(NamedTuple):
    """Where one round's rows come from: positions of queries, ``[b, g, c, s, chunk]``, and of keys,
    ``[b, g, c, w]``; and the row, among all of the round, of each token: ``[b, n, heads]``.
    """

    queries: Tensor
    keys: Tensor
    rows: Tensor


def _round(order: Order, cut: Cut) -> _Round:
    b, g, _ = order.keys.shape
    shared = order.queries.shape[1] // g
    queries = order.queries.reshape(b, g, shared, cut.chunks, cut.chunk).transpose(2, 3).contiguous()
    keys = order.keys.reshape(b, g, cut.chunks, cut.chunk)
    if cut.chunks > 1:
        keys = torch.cat([keys.roll(1, dims=2), keys], dim=-1)
    numbers = torch.arange(queries.numel(), device=queries.device).view(queries.shape).transpose(2, 3)
    rows = torch.empty_like(order.queries, memory_format=torch.contiguous_format)
    rows.scatter_(-1, order.queries.remainder(cut.slots), numbers.reshape(rows.shape))
    return _Round(queries, keys, rows[..., : cut.length].transpose(1, 2).contiguous())


def _queries(x: Tensor, places: _Round, cut: Cut) -> Tensor:
    """Rows of ``[b, heads, n, ...]`` in the round's order: ``[b, g, c, s * chunk, ...]``."""
    b, g, _, shared, _ = places.queries.shape
    split = _by_key_head(x, g)
    first, second, third = _ranges((b, g, shared), x.device)
    at = split[
        first[:, None, None, None, None],
        second[:, None, None, None],
        third[:, None],
        _inside(places.queries, cut),
    ]
    return at.flatten(3, 4)


def _keys(x: Tensor, places: _Round, cut: Cut) -> Tensor:
    """Rows of ``[b, g, n, d]`` in the round's order: ``[b, g, c, w, d]``."""
    first, second = _ranges(x.shape[:2], x.device)
    return x[first[:, None, None, None], second[:, None, None], _inside(places.keys, cut)]


def _ranges(sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    return [torch.arange(size, device=device) for size in sizes]


def _inside(positions: Tensor, cut: Cut) -> Tensor:
    """Positions that can be read: padding's own, and the last one for what fills the last chunk up."""
    return positions.remainder(cut.slots).clamp_(max=cut.length - 1)


def _scores(query: Tensor, key: Tensor, places: _Round, cut: Cut, scale: float) -> Tensor:
    """Scores in fp32, ``[b, g, c, s * chunk, w]``, the least number where a query may not see a key.

    Its own key is no part of it (see ``_own_scores``), and padding sees nothing else.
    """
    scores = torch.matmul(query, key.transpose(-2, -1)).to(torch.float32).mul_(scale)
    seeing = places.queries.flatten(3)
    seeing = torch.where(seeing < cut.length, seeing, -1)
    hidden = places.keys[:, :, :, None] >= seeing[..., None]
    return scores.masked_fill_(hidden, torch.finfo(torch.float32).min)


def _add_round(
    output: Tensor,
    total: Tensor,
    order: Order,
    inputs: tuple[Tensor, Tensor, Tensor],
    cut: Cut,
    scale: float,
) -> None:
    """Merge one round into the output and the log-sum-exp of all scores so far, both in place."""
    query, key, value = inputs
    places = _round(order, cut)
    weights = _scores(_queries(query, places, cut), _keys(key, places, cut), places, cut, scale)
    highest = weights.amax(-1, keepdim=True)
    sums = weights.sub_(highest).exp_().sum(-1, keepdim=True)
    weights = weights.div_(sums).to(value.dtype)
    found = torch.matmul(weights, _keys(value, places, cut)).flatten(0, 3)[places.rows].to(torch.float32)
    del weights
    level = highest.add_(sums.log_()).flatten()[places.rows].sub_(math.log(cut.rounds))
    merged = torch.logaddexp(total, level)
    output.mul_(total.sub_(merged).exp_()[..., None])
    output.addcmul_(found, level.sub_(merged).exp_()[..., None])
    total.copy_(merged)


def _own_gradients(
    gradient: Tensor, inner: Tensor, total: Tensor, inputs: tuple[Tensor, Tensor, Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What each token's attention to itself adds to the gradients of its query, key and value, in fp32."""
    query, key, value = inputs
    g = key.shape[1]
    gradient = gradient.transpose(1, 2)
    weights = _products(query, key).mul_(scale).sub_(_by_key_head(total.transpose(1, 2), g)).exp_()
    errors = _products(gradient, value).sub_(_by_key_head(inner.transpose(1, 2), g))
    errors = errors.mul_(weights).mul_(scale)
    of_query = (errors[..., None] * key[:, :, None]).flatten(1, 2)
    of_key = (errors[..., None] * _by_key_head(query, g)).sum(2)
    of_value = (weights[..., None] * _by_key_head(gradient, g)).sum(2)
    return of_query, of_key, of_value


def _add_gradients(
    grads: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    inner: Tensor,
    total: Tensor,
    order: Order,
    inputs: tuple[Tensor, Tensor, Tensor],
    cut: Cut,
    scale: float,
) -> None:
    """What one round adds to the gradients of queries, keys and values, all in place."""
    query, key, value = inputs
    places = _round(order, cut)
    queries, keys = _queries(query, places, cut), _keys(key, places, cut)
    wanted = _queries(gradient.transpose(1, 2), places, cut)
    level = _queries(total.transpose(1, 2), places, cut).add_(math.log(cut.rounds))
    weights = _scores(queries, keys, places, cut, scale).sub_(level[..., None]).exp_()
    of_values = torch.matmul(weights.to(value.dtype).transpose(-2, -1), wanted)
    _add_to_keys(grads[2], of_values, places, cut)
    del of_values
    errors = torch.matmul(wanted, _keys(value, places, cut).transpose(-2, -1)).to(torch.float32)
    errors.sub_(_queries(inner.transpose(1, 2), places, cut)[..., None]).mul_(weights).mul_(scale)
    del weights, wanted
    errors = errors.to(query.dtype)
    of_keys = torch.matmul(errors.transpose(-2, -1), queries)
    del queries
    _add_to_keys(grads[1], of_keys, places, cut)
    del of_keys
    of_queries = torch.matmul(errors, keys)
    grads[0].add_(of_queries.flatten(0, 3)[places.rows].transpose(1, 2))


def _add_to_keys(grad: Tensor, windows: Tensor, places: _Round, cut: Cut) -> None:
    """Add the gradients of the keys in each window, ``[b, g, c, w, d]``, to those of the tokens."""
    own = windows
    if cut.chunks > 1:
        own = windows[..., cut.chunk :, :] + windows[..., : cut.chunk, :].roll(-1, dims=2)
    keys = places.keys[..., -cut.chunk :].flatten(2)
    rows = torch.empty_like(keys).scatter_(-1, keys.remainder(cut.slots), _numbers(keys))
    grad.add_(own.flatten(0, 3)[rows[..., : cut.length]])


def _numbers(like: Tensor) -> Tensor:
    return torch.arange(like.numel(), device=like.device).view(like.shape)
