"""Training walked on paper: forward, backward, and the optimizer's step."""

from __future__ import annotations

from mem_gpt_cli.estimate.books import GRADIENTS, Storage
from mem_gpt_cli.estimate.clipping import clip
from mem_gpt_cli.estimate.decoder import Decoder
from mem_gpt_cli.estimate.loss import loss_of
from mem_gpt_cli.estimate.optimizer import Optimizer
from mem_gpt_cli.estimate.tape import Tensor

MICRO_BATCHES_WALKED = 3
"""Micro-batches of a step that are walked on a card: the first, one that adds to it, and one alike."""


def train(decoder: Decoder, tokens: Tensor) -> None:
    """One step with the optimizer's state where an earlier step has made it: the highest of its kind.

    On a card the allocator remembers the first step, so that two are walked.
    """
    steps = min(decoder.recipe.workload.steps, 2)
    optimizer = Optimizer(decoder)
    if not decoder.cuda and steps > 1:
        decoder.ledger.enter("forward")
        optimizer.make_state()
    for _ in range(steps if decoder.cuda else 1):
        _step(decoder, tokens, optimizer)


def _step(decoder: Decoder, tokens: Tensor, optimizer: Optimizer) -> None:
    """A step's micro-batches: those after the first find gradients, and are alike.

    So on a CPU one of them stands for all; on a card the first is walked as well.
    """
    ledger, recipe = decoder.ledger, decoder.recipe
    batches = recipe.workload.accumulate
    gradients: list[Tensor | Storage] = []
    ledger.enter("forward")
    if batches > 1 and not decoder.cuda:
        gradients.append(Storage(ledger, GRADIENTS, optimizer.gradient_bytes, "gradients"))
        batches = 1
    for _ in range(min(batches, MICRO_BATCHES_WALKED)):
        held: Tensor | None = None
        held = _micro_batch(decoder, tokens, gradients, optimizer.gradient_bytes)
    ledger.enter("optimizer_step")
    ledger.module = ""
    if recipe.workload.clip_norm is not None:
        clip(ledger, [parameter.numel for parameter in optimizer.parameters], decoder.cuda)
    optimizer.step()
    del held, gradients


def _micro_batch(
    decoder: Decoder, tokens: Tensor, gradients: list[Tensor | Storage], gradient_bytes: int
) -> Tensor | None:
    """Forward and backward; ``gradients`` are those that there are, and afterwards all. The logits that the
    model's outputs hold are the answer, if the recipe wants them held.
    """
    ledger = decoder.ledger
    ledger.enter("forward")
    tape = decoder.tape(recording=True)
    hidden = decoder.forward(tape, tokens)
    loss, logits = loss_of(decoder, tape, hidden, tokens.numel)
    del hidden
    tape.casts.clear()
    if not decoder.recipe.workload.hold_outputs:
        logits = None
    if gradients:
        tape.adds_to = decoder.trained()
    ledger.enter("backward")
    tape.backward(loss)
    del loss
    made = decoder.take_gradients()
    if not gradients:
        rest = gradient_bytes - sum(gradient.numel * gradient.item for gradient in made)
        gradients += [*made, Storage(ledger, GRADIENTS, rest, "gradients")]
    return logits
