"""In which order LSH attention takes queries and keys, and where each of them then stands.

Shapes are named in ``lsh``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mem_gpt_cli.attention.plan import Cut


class Order(NamedTuple):
    """One round: positions of queries, ``[b, heads, slots]``, and of keys, ``[b, g, slots]``, as sorted."""

    queries: Tensor
    keys: Tensor


class Chunks(NamedTuple):
    """The chunk of each token in a round, as a query, ``[b, heads, n]``, and as a key, ``[b, g, n]``."""

    queries: Tensor
    keys: Tensor


class Places(NamedTuple):
    """One round, cut into chunks.

    Attributes:
        queries: positions of its queries, ``[b, g, c, s, chunk]``.
        keys: positions of the keys that each chunk meets, ``[b, g, c, w]``.
        query_tokens, key_tokens: the same, as indices that can be read: padding is a token, too, and what
            fills the last chunk up is read as the last token.
        rows: of each token as a query, among all rows of the round: ``[b, n, heads]``.
        key_rows: of each token as a key, among the keys of all chunks: ``[b, n, g]``.
        chunks: the chunk of each token.
    """

    queries: Tensor
    keys: Tensor
    query_tokens: Tensor
    key_tokens: Tensor
    rows: Tensor
    key_rows: Tensor
    chunks: Chunks


def by_key_head(x: Tensor, g: int) -> Tensor:
    """``[b, heads, ...]`` as ``[b, g, s, ...]``."""
    return x.view(x.shape[0], g, -1, *x.shape[2:])


def orders(query: Tensor, key: Tensor, keep: Tensor | None, cut: Cut, seed: int) -> list[Order]:
    """The order of every round: that of the sequence, then those by bucket.

    Args:
        query: ``[b, heads, n, d]``.
        key: ``[b, g, n, d]``.
        keep: ``[b, n]``, false where a token is padding; ``None``: none is.
        cut: how ``n`` tokens are hashed and cut.
        seed: of the random directions.
    """
    b, heads, n, d = query.shape
    positions = torch.arange(cut.slots, device=query.device)
    if keep is not None:
        padding = torch.nn.functional.pad(~keep, (0, cut.slots - n))
        positions = positions + cut.slots * padding[:, None]
    found = [Order(*(positions.expand(b, count, cut.slots) for count in (heads, key.shape[1])))]
    generator = torch.Generator(query.device).manual_seed(seed)
    options = {"generator": generator, "device": query.device, "dtype": query.dtype}
    for _ in range(cut.rounds):
        directions = torch.randn(d, cut.directions, **options)  # type: ignore[call-overload]
        found.append(
            Order(*(_sorted(_buckets(x, keep, directions, cut), positions, cut) for x in (query, key)))
        )
    return found


def _buckets(x: Tensor, keep: Tensor | None, directions: Tensor, cut: Cut) -> Tensor:
    """The bucket of each vector, less the mean of all, ``[b, heads, n]``: which direction, or its opposite,
    is the nearest. Only the angle counts, so that vectors need not be normalised.
    """
    near = torch.matmul(x, directions)
    if keep is None:
        near.sub_(near.mean(-2, keepdim=True))
    else:
        kept = keep[:, None, :, None].to(near.dtype)
        near.sub_((near * kept).sum(-2, keepdim=True).div_(kept.sum(-2, keepdim=True).clamp_(min=1)))
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


def places_of(order: Order, cut: Cut) -> Places:
    """Cut an order into chunks, and turn it round."""
    b, g, _ = order.keys.shape
    queries = by_key_head(order.queries, g).unflatten(-1, (cut.chunks, cut.chunk))
    queries = queries.transpose(2, 3).contiguous()
    keys = order.keys.unflatten(-1, (cut.chunks, cut.chunk))
    windows = torch.cat([keys.roll(1, dims=2), keys], dim=-1) if cut.chunks > 1 else keys
    numbers = torch.arange(queries.numel(), device=queries.device).view(queries.shape).transpose(2, 3)
    rows = _turned_round(order.queries, numbers.reshape(order.queries.shape), cut)
    key_rows = _turned_round(order.keys, torch.arange(keys.numel(), device=keys.device).view(b, g, -1), cut)
    rows_a_chunk = queries.shape[3] * cut.chunk
    return Places(
        queries,
        windows,
        _readable(queries, cut),
        _readable(windows, cut),
        rows.transpose(1, 2).contiguous(),
        key_rows.transpose(1, 2).contiguous(),
        Chunks(
            rows.div(rows_a_chunk, rounding_mode="floor").remainder_(cut.chunks),
            key_rows.div(cut.chunk, rounding_mode="floor").remainder_(cut.chunks),
        ),
    )


def _turned_round(order: Tensor, numbers: Tensor, cut: Cut) -> Tensor:
    """The number of each token in an order, ``[b, heads, n]``."""
    numbers = torch.empty_like(numbers).scatter_(-1, order.remainder(cut.slots), numbers)
    return numbers[..., : cut.length]


def _readable(positions: Tensor, cut: Cut) -> Tensor:
    return positions.remainder(cut.slots).clamp_(max=cut.length - 1)
