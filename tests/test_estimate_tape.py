"""The tape frees and adds up as torch does."""

from __future__ import annotations

from mem_gpt_cli.allocator import CachingAllocator
from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.books import GRADIENTS, WEIGHTS, Ledger, Storage
from mem_gpt_cli.estimate.card_books import CardLedger
from mem_gpt_cli.estimate.tape import Parameter, Tape, Tensor


def tape_and_ledger(ledger: Ledger | None = None) -> tuple[Tape, Ledger]:
    ledger = ledger or Ledger()
    ledger.enter("run")
    return Tape(ledger, recording=True), ledger


def parameter(ledger: Ledger, numel: int) -> Parameter:
    return Parameter(numel, 4, Storage(ledger, WEIGHTS, 0, "empty"), trainable=True)


def test_a_buffer_lives_as_long_as_a_name_or_a_saved_tensor_holds_it() -> None:
    tape, ledger = tape_and_ledger()
    x = tape.new(10, 4, "input")
    x = ops.pointwise(tape, "neg", x)
    assert ledger.total == 40
    weight = parameter(ledger, 100)
    y = ops.linear(tape, x, weight, 10)
    del x
    assert ledger.total == 80, "the product's backward needs x"
    del y
    assert ledger.total == 40
    tape.nodes.clear()
    assert ledger.total == 0


def test_backward_leaves_the_gradients_alone() -> None:
    tape, ledger = tape_and_ledger()
    weight = parameter(ledger, 100)
    x = tape.new(10, 4, "input")
    y = ops.pointwise(tape, "tanh", ops.linear(tape, x, weight, 10), keeps_output=True)
    del x
    tape.backward(y)
    del y
    assert ledger.total == 400
    assert ledger.live[GRADIENTS] == 400
    weight.zero_grad()
    assert ledger.total == 0


def test_a_gradient_is_added_in_place_only_where_nobody_else_holds_it() -> None:
    """torch/csrc/autograd/input_buffer.cpp: a view's base holds its bytes as well."""
    tape, ledger = tape_and_ledger()
    node = parameter(ledger, 10).node
    assert node is not None
    node.receive(tape, 0, tape.new(10, 4, "first"))
    before = node.grads[0]
    node.receive(tape, 0, tape.new(10, 4, "second"))
    assert node.grads[0] is before
    node.receive(tape, 0, tape.new(10, 4, "third").view())
    assert node.grads[0] is before, "the sum goes into what was held, which is no view"

    other = parameter(ledger, 10).node
    assert other is not None
    viewed = tape.new(10, 4, "first").view()
    other.receive(tape, 0, viewed)
    other.receive(tape, 0, tape.new(10, 4, "second"))
    assert other.grads[0] is not viewed


def test_the_peak_is_a_moment_whose_slots_add_up() -> None:
    tape, ledger = tape_and_ledger()
    first = tape.new(100, 4, "a")
    del first
    second = tape.new(60, 4, "b")
    peak = ledger.peaks["run"]
    assert (peak.total, peak.operation) == (400, "a")
    assert sum(peak.live) == peak.total
    assert ledger.total == 240
    del second


def test_on_a_card_a_storage_weighs_its_block() -> None:
    """A segment of 12 MiB keeps the MiB that is left beside 11, and stays when its block goes."""
    books = CardLedger(CachingAllocator())
    tape, ledger = tape_and_ledger(books)
    x, large = tape.new(1, 4, "scalar"), tape.new(11 * 2**20, 1, "large")
    assert ledger.total == 512 + 12 * 2**20
    assert books.reserved["run"] == 14 * 2**20
    del x, large
    assert ledger.total == 0
    books.enter("again")
    assert books.reserved["again"] == 14 * 2**20
    assert books.fragmentation.allocated == 512 + 12 * 2**20


def test_autocast_makes_each_weight_once() -> None:
    ledger = Ledger()
    ledger.enter("run")
    tape = Tape(ledger, recording=False, autocast=2)
    weight = parameter(ledger, 100)
    x = tape.new(10, 4, "input")
    outputs = [ops.linear(tape, x, weight, 10) for _ in range(2)]
    assert [out.item for out in outputs] == [2, 2]
    assert len(tape.casts) == 1
    assert ledger.total == 40 + 200 + 2 * 20
    tape.casts.clear()
    assert ledger.total == 40 + 2 * 20


def test_dropout_without_probability_is_nothing() -> None:
    tape, ledger = tape_and_ledger()
    x: Tensor = tape.new(10, 4, "input")
    assert ops.dropout(tape, x, 0.0) is x
    assert ledger.total == 40
