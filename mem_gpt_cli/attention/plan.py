"""How a sequence is hashed and cut: what LSH attention decides by lengths alone, without torch."""

from __future__ import annotations

from typing import NamedTuple

from mem_gpt_cli.recipe.schema import Attention

ROUNDS = 2
CHUNK = 64
BUCKETS_A_CHUNK = 2
_WIDEST_HASH = 16
"""Buckets from which on two hashes are combined, so that no hash is as wide as the sequence is long."""


class Lsh(NamedTuple):
    """LSH attention as a recipe asks for it; ``buckets`` ``None`` follows the length of the sequence.

    ``rounds`` are those of hashing; a round that hashes nothing, of neighbours in the sequence, comes first.
    """

    rounds: int
    buckets: int | None
    chunk: int

    @classmethod
    def of(cls, attention: Attention) -> Lsh:
        """The recipe's values, or those that stand in for them."""
        return cls(attention.rounds or ROUNDS, attention.buckets, attention.chunk or CHUNK)

    def cut(self, length: int) -> Cut:
        """What becomes of a sequence of ``length`` tokens: one chunk where all of them are neighbours."""
        if self.buckets == 1 or length <= 2 * self.chunk:
            return Cut(length, length, 1, 0, ())
        chunks = -(-length // self.chunk)
        buckets = self.buckets or power_of_two(BUCKETS_A_CHUNK * chunks)
        return Cut(length, self.chunk, chunks, self.rounds, factors(buckets))


class Cut(NamedTuple):
    """One sequence, cut: ``chunks`` of ``chunk`` tokens, in a round of neighbours and ``rounds`` of hashing.

    ``hashes`` are the buckets of each hash that is combined in a round; their product is the number of
    buckets.
    """

    length: int
    chunk: int
    chunks: int
    rounds: int
    hashes: tuple[int, ...]

    @property
    def slots(self) -> int:
        """Places in the sorted order: the tokens, and what fills the last chunk up."""
        return self.chunk * self.chunks

    @property
    def buckets(self) -> int:
        """Buckets of one round."""
        product = 1
        for width in self.hashes:
            product *= width
        return product

    @property
    def directions(self) -> int:
        """Random directions that a vector is compared with in one round: half of each hash's buckets."""
        return sum(self.hashes) // 2

    @property
    def window(self) -> int:
        """Keys that a chunk of queries meets: those of its own place and of the one before."""
        return self.chunk if self.chunks == 1 else 2 * self.chunk


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below ``least``."""
    return 1 << (least - 1).bit_length()


def factors(buckets: int) -> tuple[int, ...]:
    """An even number of buckets as one hash or as two even ones, as near to each other as may be.

    Each hash makes an even number of buckets, because it tells a direction from its opposite.

    >>> factors(8), factors(64), factors(128), factors(34)
    ((8,), (8, 8), (16, 8), (34,))
    """
    if buckets > _WIDEST_HASH:
        for small in range(int(buckets**0.5) // 2 * 2, 1, -2):
            if buckets % small == 0 and buckets // small % 2 == 0:
                return (buckets // small, small)
    return (buckets,)
