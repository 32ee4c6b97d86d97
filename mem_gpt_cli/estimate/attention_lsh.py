"""LSH attention, written down: every buffer that ``attention/lsh.py`` and ``lsh_order.py`` make.

Nothing in it depends on the data, so the walk is the run. The names are those of that code, and they live as
long as there.
"""

# ruff: noqa: ARG001  (every rule has the signature that the tape calls it with)

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mem_gpt_cli.attention.plan import Cut
from mem_gpt_cli.estimate.books import FP32, INT64, SCORES
from mem_gpt_cli.estimate.ops import Grads
from mem_gpt_cli.estimate.tape import Node, Tape, Tensor

BOOL = 1
_QUERY_INDICES, _KEY_INDICES = 4, 3
"""Tensors that index a query (sequence, key head, head in the group, token) and a key."""


class Sizes(NamedTuple):
    """Rows of one attention: ``tokens`` of all query heads and of all key heads, and one round's slots."""

    cut: Cut
    batch: int
    heads: int
    key_heads: int
    width: int
    item: int

    @property
    def query_slots(self) -> int:
        """Rows of queries in one round, with what fills the last chunk up."""
        return self.batch * self.heads * self.cut.slots

    @property
    def key_slots(self) -> int:
        """Rows of keys in one round, each once."""
        return self.batch * self.key_heads * self.cut.slots

    @property
    def queries(self) -> int:
        """Queries of all tokens."""
        return self.batch * self.heads * self.cut.length

    @property
    def keys(self) -> int:
        """Keys of all tokens."""
        return self.batch * self.key_heads * self.cut.length

    @property
    def window_keys(self) -> int:
        """Keys of the windows of all chunks."""
        return self.key_slots // self.cut.chunk * self.cut.window

    @property
    def scores(self) -> int:
        """Pairs of a query and a key that one round compares."""
        return self.query_slots * self.cut.window


def lsh_attention(tape: Tape, inputs: tuple[Tensor, Tensor, Tensor], sizes: Sizes) -> Tensor:
    """The output, ``[batch, tokens, heads, width]``; autograd keeps it, inputs, orders, a sum a row.

    Args:
        tape: where it is written down.
        inputs: queries, keys and values, in the width that they are multiplied in.
        sizes: of the attention.
    """
    operation, recording = "lsh", tape.recording
    orders = _orders(tape, inputs, sizes)
    earlier: list[Sequence[Tensor]] = []
    output, total = _round(tape, sizes, _places(tape, sizes, hashed=False), earlier)
    for _ in range(sizes.cut.rounds):
        found, level = _round(tape, sizes, _places(tape, sizes, hashed=True), earlier)
        total = tape.new(sizes.queries, FP32, "logaddexp")
        del found, level
    if sizes.item != FP32:
        output = tape.new(output.numel, sizes.item, "_to_copy")
    out = output.view(permuted=True)
    kept = [x.storage for x in (*inputs, output, total, *orders)] if recording else []

    def backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
        return _backward(tape, sizes)

    return tape.record(operation, out, inputs, kept, backward)


def _orders(tape: Tape, inputs: tuple[Tensor, Tensor, Tensor], sizes: Sizes) -> list[Tensor]:
    """The positions, and in each round of hashing queries and keys sorted."""
    cut = sizes.cut
    found = [tape.new(cut.slots, INT64, "arange")]
    for _ in range(cut.rounds):
        directions = tape.new(sizes.width * cut.directions, sizes.item, "randn")
        for x, tokens, slots in (
            (inputs[0], sizes.queries, sizes.query_slots),
            (inputs[1], sizes.keys, sizes.key_slots),
        ):
            found.append(_sorted(tape, _buckets(tape, x, tokens, sizes), slots, cut))
        del directions
    return found


def _buckets(tape: Tape, x: Tensor, tokens: int, sizes: Sizes) -> Tensor:
    copy = tape.new(tokens * sizes.width, x.item, "clone") if x.permuted else None
    near = tape.new(tokens * sizes.cut.directions, x.item, "mm")
    del copy
    buckets: Tensor | None = None
    for width in sizes.cut.hashes:
        opposite = tape.new(tokens * width // 2, x.item, "neg")
        both = tape.new(tokens * width, x.item, "cat")
        del opposite
        nearest = tape.new(tokens, INT64, "argmax")
        del both
        buckets = buckets or nearest
    del near
    assert buckets is not None
    return buckets


def _sorted(tape: Tape, buckets: Tensor, slots: int, cut: Cut) -> Tensor:
    padded = tape.new(slots, INT64, "constant_pad_nd") if cut.slots > cut.length else buckets
    product = tape.new(slots, INT64, "mul")
    keys = tape.new(slots, INT64, "add")
    del product
    indices, values = tape.new(slots, INT64, "sort"), tape.new(slots, INT64, "sort")
    tape.scratch(INT64 * cut.slots, "sort")
    del padded, keys, indices
    return values


def _places(tape: Tape, sizes: Sizes, *, hashed: bool) -> dict[str, Tensor]:
    """``places_of``: what a round holds."""
    cut, shared = sizes.cut, sizes.heads > sizes.key_heads
    held: dict[str, Tensor] = {}
    if shared or not (hashed or sizes.batch * sizes.heads == 1):
        held["queries"] = tape.new(sizes.query_slots, INT64, "clone")
    if cut.chunks > 1:
        rolled = tape.new(sizes.key_slots, INT64, "roll")
        held["windows"] = tape.new(sizes.window_keys, INT64, "cat")
        del rolled
    numbers = tape.new(sizes.query_slots, INT64, "arange")
    reshaped = tape.new(sizes.query_slots, INT64, "clone") if shared and cut.chunks > 1 else None
    rows = tape.new(sizes.query_slots, INT64, "empty_like")
    tape.scratch(INT64 * sizes.query_slots, "remainder")
    del reshaped
    key_numbers = tape.new(sizes.key_slots, INT64, "arange")
    key_rows = tape.new(sizes.key_slots, INT64, "empty_like")
    tape.scratch(INT64 * sizes.key_slots, "remainder")
    del key_numbers
    held["query_tokens"] = tape.new(sizes.query_slots, INT64, "remainder")
    held["key_tokens"] = tape.new(sizes.window_keys, INT64, "remainder")
    held["rows"] = tape.new(sizes.queries, INT64, "clone") if sizes.heads > 1 else rows
    held["key_rows"] = tape.new(sizes.keys, INT64, "clone") if sizes.key_heads > 1 else key_rows
    held["query_chunks"] = tape.new(sizes.queries, INT64, "div")
    held["key_chunks"] = tape.new(sizes.keys, INT64, "div")
    del numbers, rows, key_rows
    return held


def _rows(tape: Tape, sizes: Sizes, width: int, item: int) -> Tensor:
    """Queries, or what there is one of for each, in a round's order."""
    out = tape.new(sizes.query_slots * width, item, "index")
    if tape.cuda:
        tape.buffers([INT64 * sizes.query_slots] * (_QUERY_INDICES - 1), "index")
    return out


def _keys(tape: Tape, sizes: Sizes, width: int, item: int) -> Tensor:
    """Keys, or what there is one of for each, in the windows of a round."""
    out = tape.new(sizes.window_keys * width, item, "index")
    if tape.cuda:
        tape.buffers([INT64 * sizes.window_keys] * (_KEY_INDICES - 1), "index")
    return out


def _product(tape: Tape, numel: int, item: int) -> Tensor:
    out = tape.new(numel, item, "bmm")
    if tape.cuda:
        tape.cuda.multiplies(tape, biased=False)
    return out


def _widened(tape: Tape, x: Tensor, item: int) -> Tensor:
    return x if x.item == item else tape.new(x.numel, item, "_to_copy")


def _scores(tape: Tape, sizes: Sizes, inputs: list[Tensor], earlier: list[Sequence[Tensor]]) -> Tensor:
    """``_scores`` with ``_hidden``; ``inputs`` go once they are multiplied, unless others hold them."""
    outer, tape.slot = tape.slot, SCORES
    product = _product(tape, sizes.scores, sizes.item)
    scores = _widened(tape, product, FP32)
    del product
    inputs.clear()
    small = tape.new(sizes.query_slots, BOOL, "lt")
    seeing = tape.new(sizes.query_slots, INT64, "where")
    del small
    hidden = tape.new(sizes.scores, BOOL, "gt")
    for _ in earlier:
        chunks = _rows(tape, sizes, 1, INT64)
        met = _keys(tape, sizes, 1, INT64)
        tape.scratch(sizes.scores, "eq")
        before = tape.new(sizes.query_slots, INT64, "sub")
        tape.scratch(sizes.scores, "eq")
        del before, chunks, met
    del seeing, hidden
    tape.slot = outer
    return scores


def _round(
    tape: Tape, sizes: Sizes, places: dict[str, Tensor], earlier: list[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    inputs = [_rows(tape, sizes, sizes.width, sizes.item), _keys(tape, sizes, sizes.width, sizes.item)]
    weights = _scores(tape, sizes, inputs, earlier)
    earlier.append((places["query_chunks"], places["key_chunks"]))
    highest, sums = (tape.new(sizes.query_slots, FP32, name) for name in ("amax", "sum"))
    weights = _widened(tape, weights, sizes.item)
    values = _keys(tape, sizes, sizes.width, sizes.item)
    found = _product(tape, sizes.query_slots * sizes.width, sizes.item)
    del values, weights
    level = tape.new(sizes.queries, FP32, "index")
    output = _widened(tape, tape.new(sizes.queries * sizes.width, sizes.item, "index"), FP32)
    del found, highest, sums
    return output, level


def _backward(tape: Tape, sizes: Sizes) -> list[Tensor | None]:
    """Gradients of queries, keys and values, each summed over all rounds in fp32."""
    product = tape.new(sizes.queries * sizes.width, sizes.item, "mul")
    inner = tape.new(sizes.queries, FP32, "sum")
    del product
    earlier: list[Sequence[Tensor]] = []
    sums: list[Tensor] = []
    for index in range(1 + sizes.cut.rounds):
        places = _places(tape, sizes, hashed=index > 0)
        new = _gradients(tape, sizes, earlier)
        earlier.append((places["query_chunks"], places["key_chunks"]))
        sums = sums or new
        del new, places
    del inner
    results: list[Tensor | None] = []
    for total in sums:
        result = _widened(tape, total, sizes.item).view(permuted=True)
        results.append(result)
    return results


def _gradients(tape: Tape, sizes: Sizes, earlier: list[Sequence[Tensor]]) -> list[Tensor]:
    """``_add_gradients``: those of one round."""
    width, item = sizes.width, sizes.item
    queries, keys = _rows(tape, sizes, width, item), _keys(tape, sizes, width, item)
    wanted = _rows(tape, sizes, width, item)
    weights = _scores(tape, sizes, [], earlier)
    level = _rows(tape, sizes, 1, FP32)
    del level
    narrow = _widened(tape, weights, item)
    windows = _product(tape, sizes.window_keys * width, item)
    del narrow
    of_values = _of_tokens(tape, sizes, [windows])
    del windows
    values = _keys(tape, sizes, width, item)
    product = _product(tape, sizes.scores, item)
    del values
    errors = _widened(tape, product, FP32)
    del product
    products = _rows(tape, sizes, 1, FP32)
    del products, weights, wanted
    errors = _widened(tape, errors, item)
    of_keys = _of_tokens(tape, sizes, [_product(tape, sizes.window_keys * width, item)])
    del queries
    rows = _product(tape, sizes.query_slots * width, item)
    indexed = tape.new(sizes.queries * width, item, "index")
    del rows
    of_queries = _widened(tape, indexed, FP32)
    del indexed, errors, keys
    return [of_queries, of_keys, of_values]


def _of_tokens(tape: Tape, sizes: Sizes, windows: list[Tensor]) -> Tensor:
    """``_of_tokens``: ``windows`` holds the only reference where the code hands over a result at once."""
    if sizes.cut.chunks > 1:
        rolled = tape.new(sizes.key_slots * sizes.width, sizes.item, "roll")
        windows[0] = tape.new(sizes.key_slots * sizes.width, sizes.item, "add")
        del rolled
    return _widened(tape, tape.new(sizes.keys * sizes.width, sizes.item, "index"), FP32)
