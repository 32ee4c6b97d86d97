"""Training walked on paper: forward, backward, and the optimizer's step."""

from __future__ import annotations

from mem_gpt_cli.estimate.books import GRADIENTS, Storage
from mem_gpt_cli.estimate.decoder import Decoder
from mem_gpt_cli.estimate.optimizer import Optimizer, optimizer_of
from mem_gpt_cli.estimate.tape import Tensor


def train(decoder: Decoder, tokens: Tensor) -> None:
    """One step with the optimizer's state where an earlier step has made it: the highest of its kind.

    On a card the allocator remembers the first step, so that two are walked.
    """
    steps = min(decoder.recipe.workload.steps, 2)
    optimizer = optimizer_of(decoder)
    if not decoder.cuda and steps > 1:
        decoder.ledger.enter("forward")
        optimizer.make_state()
    for _ in range(steps if decoder.cuda else 1):
        _step(decoder, tokens, optimizer)


def _step(decoder: Decoder, tokens: Tensor, optimizer: Optimizer) -> None:
    ledger, recipe = decoder.ledger, decoder.recipe
    ledger.enter("forward")
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
    rest = Storage(ledger, GRADIENTS, optimizer.gradient_bytes - decoder.walked_gradient_bytes(), "gradients")
    ledger.enter("optimizer_step")
    ledger.module = ""
    optimizer.step()
    del held, rest
    decoder.zero_grad()
