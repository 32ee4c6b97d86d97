"""The loss on paper: from the last hidden states to one number, all logits at once or some rows at a time."""
# ruff: noqa: ARG001  (every rule has the signature that the tape calls it with)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.books import CASTS, FP32, GRADIENTS, INPUTS, INT64, LOGITS, Storage
from mem_gpt_cli.estimate.tape import Node, Parameter, Tape, Tensor
from mem_gpt_cli.loss.cost import DEFAULT_CHUNK, Fused, chunk_rows

if TYPE_CHECKING:
    from mem_gpt_cli.estimate.decoder import Decoder


def loss_of(decoder: Decoder, tape: Tape, hidden: Tensor, rows: int) -> tuple[Tensor, Tensor | None]:
    """The loss of ``rows`` hidden states, and the logits where the model's outputs hold them all."""
    kind = decoder.recipe.loss.kind
    if kind == "chunked":
        return _chunked(decoder, tape, hidden, rows), None
    if kind == "fused":
        return _fused(decoder, tape, hidden, rows), None
    logits = decoder.head(tape, hidden)
    labels = _labels(tape, rows)
    loss = _cross_entropy(tape, _widened(tape, logits), rows)
    del labels
    return loss, logits


def _labels(tape: Tape, rows: int) -> Tensor:
    """Labels shifted by padding (transformers' loss/loss_utils.py)."""
    return tape.new(rows, INT64, "constant_pad_nd", INPUTS)


def _cross_entropy(tape: Tape, logits: Tensor, rows: int) -> Tensor:
    """Of logits in fp32."""
    outer, tape.slot = tape.slot, LOGITS
    tape.ledger.module = "loss"
    out = ops.log_softmax_nll(tape, logits, rows)
    tape.slot, tape.ledger.module = outer, ""
    return out


def _widened(tape: Tape, logits: Tensor) -> Tensor:
    """The logits in fp32."""
    outer, tape.slot = tape.slot, LOGITS
    wide = ops.cast(tape, logits, FP32)
    tape.slot = outer
    return wide


def _chunked(decoder: Decoder, tape: Tape, hidden: Tensor, rows: int) -> Tensor:
    """``loss.chunked``: each chunk keeps its hidden states alone, and runs again in backward."""
    labels = _labels(tape, rows)
    sizes = chunk_rows(rows, decoder.recipe.loss.chunk or DEFAULT_CHUNK)
    width = hidden.numel // rows
    parts = ops.split(tape, hidden, [size * width for size in sizes])
    losses = [_chunk(decoder, tape, part, size) for part, size in zip(parts, sizes, strict=True)]
    del parts
    return tape.record("sum", tape.new(1, FP32, "sum"), losses, (labels.storage,), _scalars)


def _scalars(tape: Tape, node: Node, grads: ops.Grads) -> Sequence[Tensor | None]:
    return [tape.new(1, FP32, "unbind_backward") for _ in node.edges]


def _chunk(decoder: Decoder, tape: Tape, part: Tensor, rows: int) -> Tensor:
    """The summed cross entropy of some rows (torch.utils.checkpoint, not reentrant)."""
    matrix = decoder.output_matrix()
    kernel = ops.in_autocast(tape, matrix)
    cast = None if kernel is matrix else kernel.node
    recording, tape.recording = tape.recording, False
    out = _cross_entropy(tape, _widened(tape, decoder.head(tape, part.handle())), rows)
    tape.recording = recording

    def recompute(tape: Tape, node: Node, grads: ops.Grads) -> Sequence[Tensor | None]:
        edge, to_matrix = node.edges
        assert node.saved is not None
        leaf = Parameter(edge.numel, edge.item, node.saved[0], trainable=True)
        first = len(tape.nodes)
        tape.casts.clear()
        if (
            cast is not None
        ):  # the matrix is cast anew, but its gradient goes where that of the first cast goes
            tape.casts[id(matrix)] = tape.new(to_matrix.numel, to_matrix.item, "_to_copy", CASTS)
            tape.casts[id(matrix)].node = cast
        again = _cross_entropy(tape, _widened(tape, decoder.head(tape, leaf)), rows)
        tape.casts.clear()
        assert again.node is not None
        again.node.receive(tape, again.port, grads.pop())  # type: ignore[arg-type]
        del again
        tape.backward_until(first)
        assert leaf.node is not None
        return [leaf.node.grads[0], None]

    return tape.record("checkpoint", out, (part, kernel), (part.storage,), recompute)


def _fused(decoder: Decoder, tape: Tape, hidden: Tensor, rows: int) -> Tensor:
    """``linear_cross_entropy``: the gradients are there when the forward pass ends; backward scales them."""
    recipe, labels = decoder.recipe, _labels(tape, rows)
    matrix = decoder.output_matrix()
    bias = decoder.bias("lm_head", decoder.architecture.vocab)
    operands: list[Tensor] = [hidden, matrix] if bias is None else [hidden, matrix, bias]
    if tape.autocast:
        operands = [ops.cast(tape, operand, tape.autocast) for operand in operands]
    call = Fused(
        device=recipe.device.type,
        dtype=recipe.model.dtype if recipe.workload.autocast == "none" else recipe.workload.autocast,
        rows=rows,
        hidden=hidden.numel // rows,
        vocab=decoder.architecture.vocab,
        trains_matrix=matrix.node is not None,
        biased=bias is not None,
    )
    tape.ledger.module = "loss"
    slots = (tape.slot, GRADIENTS, GRADIENTS)
    gradients = [
        Storage(tape.ledger, slot, nbytes, "linear_cross_entropy")
        for slot, nbytes in zip(slots, call.gradients, strict=True)
    ][: len(operands)]
    if tape.cuda:
        tape.cuda.multiplies(tape, biased=False)
        tape.buffers(call.inside, "linear_cross_entropy")
    else:
        tape.scratch(call.inside_bytes, "linear_cross_entropy")
    tape.ledger.module = ""
    loss = tape.new(1, operands[0].item, "linear_cross_entropy", LOGITS)
    del labels
    return tape.record("linear_cross_entropy", loss, operands, gradients, _scaled_in_place)


def _scaled_in_place(tape: Tape, node: Node, grads: ops.Grads) -> Sequence[Tensor | None]:
    """The gradients of the forward pass. They are outputs of the operator that nobody uses, so autograd makes
    zeros for the gradient of each (``set_materialize_grads`` in torch/_library/autograd.py's function).
    """
    assert node.saved is not None
    zeros = [tape.new(edge.numel, edge.item, "zeros") for edge in node.edges if edge.node]
    del zeros
    return [
        Tensor(edge.numel, edge.item, storage) if edge.node else None
        for edge, storage in zip(node.edges, node.saved, strict=True)
    ]
