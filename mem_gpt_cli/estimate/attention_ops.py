"""The operations of attention: products over batch and heads, softmax, and the fused kernel."""
# ruff: noqa: ARG001  (every rule has the signature that the tape calls it with)

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.estimate.books import FP32
from mem_gpt_cli.estimate.ops import Grads, cast, clone, fresh
from mem_gpt_cli.estimate.tape import Node, Tape, Tensor


def matmul(tape: Tape, a: Tensor, b: Tensor, numel: int, *, merges: bool, casts: bool = True) -> Tensor:
    """A product over batch and heads; inside a composite kernel autocast no longer ``casts``.

    ``merges``: batch and heads, both more than one, become one dimension, for which an operand (and in
    backward a gradient) whose heads were permuted is copied first.
    """
    if merges:
        a, b = (clone(tape, x) if x.permuted else x for x in (a, b))
    if tape.autocast and casts:
        a, b = cast(tape, a, tape.autocast), cast(tape, b, tape.autocast)
    (out,) = tape.kept("attention", lambda: _product(tape, numel, a.item))
    saved = [t.storage for t, other in ((a, b), (b, a)) if other.node is not None]
    return tape.record("bmm", out, (a, b), saved, _merging_bmm_backward if merges else _bmm_backward)


def _product(tape: Tape, numel: int, item: int) -> tuple[Tensor]:
    out = tape.new(numel, item, "bmm")
    if tape.cuda:
        tape.cuda.multiplies(tape, biased=False)
    return (out,)


def _bmm_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    return [tape.new(edge.numel, edge.item, "bmm", edge.slot) if edge.node else None for edge in node.edges]


def _merging_bmm_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    grad = grads[0]
    assert grad is not None
    if grad.permuted:
        grads[0] = tape.new(grad.numel, grad.item, "clone", grad.storage.slot)
    grad = None
    return _bmm_backward(tape, node, grads)


def to_heads(tape: Tape, x: Tensor) -> Tensor:
    """``x.view(batch, tokens, heads, width).transpose(1, 2)``; what comes back head by head is copied."""
    return tape.record("clone", x.view(permuted=True), (x,), (), _from_heads_backward)


def _from_heads_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    grad = grads[0]
    assert grad is not None
    if grad.permuted:
        return [grad.view()]
    return [tape.new(grad.numel, grad.item, "clone", grad.storage.slot)]


def from_heads(tape: Tape, x: Tensor) -> Tensor:
    """``x.transpose(1, 2).reshape(batch, tokens, width)``: a view of permuted heads, else a copy."""
    out = x.view() if x.permuted else tape.new(x.numel, x.item, "clone")
    return tape.record("clone", out, (x,), (), _permuted_backward)


def _permuted_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    grad = grads[0]
    assert grad is not None
    return [grad.view(permuted=True)]


def softmax(tape: Tape, x: Tensor, item: int) -> Tensor:
    """Keeps its output, ``item`` bytes wide; on CUDA one kernel reads fp16 and writes that width."""
    wide = x if tape.cuda and tape.cuda.dtype == "fp16" else cast(tape, x, item)
    out = tape.new(x.numel, item, "_softmax")
    return tape.record("_softmax", out, (wide,), (out.storage,), _softmax_backward if tape.cuda else fresh)


def _softmax_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    """On CUDA the product of gradient and output is a buffer (aten/src/ATen/native/cuda/SoftMax.cu)."""
    result = fresh(tape, node, grads)
    grad = grads[0]
    assert grad is not None
    tape.scratch(grad.numel * grad.item, "_softmax_backward_data")
    return result


def sdpa(
    tape: Tape,
    inputs: tuple[Tensor, Tensor, Tensor],
    rows: int,
    value_numel: int,
    mask: Tensor | None,
    scratch: int,
) -> Tensor:
    """Fused attention: it keeps q, k, v and the mask, and makes and keeps the output and the log-sum-exp of
    each row alone; beside them it takes ``scratch`` bytes while it runs.
    """
    operation = "scaled_dot_product_attention"

    def run() -> tuple[Tensor, Tensor]:
        results = (tape.new(value_numel, inputs[0].item, operation), tape.new(rows, FP32, operation))
        tape.scratch(scratch, operation)
        return results

    out, statistics = tape.kept("attention", run)
    kept = (*inputs, out, statistics) if mask is None else (*inputs, out, statistics, mask)
    out.permuted = True
    return tape.record(operation, out, inputs, [x.storage for x in kept], sdpa_backward)


def sdpa_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    """Gradients of queries, keys and values, each as it lies."""
    results = [
        tape.new(edge.numel, edge.item, f"{node.operation}_backward", edge.slot) for edge in node.edges
    ]
    for result in results:
        result.permuted = True
    return results


def repeat(tape: Tape, x: Tensor, times: int) -> Tensor:
    """Each head ``times`` over, copied; backward adds the copies up."""
    out = tape.new(x.numel * times, x.item, "repeat")
    return tape.record("sum", out, (x,), (), fresh)


def expand(tape: Tape, x: Tensor, times: int) -> Tensor:
    """The only head ``times`` over, as a view without a stride; backward adds the heads' gradients up.

    It counts as permuted: no view merges it with the batch.
    """
    out = Tensor(x.numel * times, x.item, x.storage, permuted=True)
    out.viewed = True
    return tape.record("sum", out, (x,), (), fresh)
