"""A mixture of experts: the router, and the experts as transformers runs them (``integrations/moe.py``).

Which expert a token takes is the data's affair. Grouped and batched code touches every chosen pair of token
and expert at once, so that its buffers do not depend on it; eager code takes one expert after the other, and
its buffers are those of an even spread.
"""

from __future__ import annotations

from mem_gpt_cli.estimate import attention_ops, ops
from mem_gpt_cli.estimate.activation import activate
from mem_gpt_cli.estimate.books import FP32, KERNEL_BUFFERS
from mem_gpt_cli.estimate.feed_forward import dense_mlp
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.tape import Tensor
from mem_gpt_cli.model.architecture import Mlp

INT64 = 8


def mixture(run: Pass, part: Mlp, name: str, x: Tensor) -> Tensor:
    """The routed experts of every token, added up, and the shared expert where there is one."""
    weights = router(run, part, name, x)
    out = routed(run, part, name, x, weights)
    if part.shared_intermediate:
        shared = dense_mlp(run, part, f"{name}.shared_experts", x, part.shared_intermediate)
        out = ops.add(run.tape, out, shared)
    return out


def router(run: Pass, part: Mlp, name: str, x: Tensor) -> Tensor:
    """Scores in fp32 and the weights of the chosen experts, ``[tokens, experts_per_token]``."""
    tape = run.tape
    scores = ops.linear(
        tape, x, run.weight(f"{name}.gate.weight", run.architecture.hidden * part.experts), part.experts
    )
    scores = attention_ops.softmax(tape, ops.cast(tape, scores, FP32), FP32)
    return ops.gather(tape, scores, run.rows * part.experts_per_token)


def routed(run: Pass, part: Mlp, name: str, x: Tensor, weights: Tensor) -> Tensor:
    """The experts' part, by the code that the recipe asks for; ``auto`` is grouped."""
    pairs = run.rows * part.experts_per_token
    if run.experts == "eager":
        return _one_by_one(run, part, name, x, weights, pairs)
    tape, hidden = run.tape, run.architecture.hidden
    if run.experts == "batched":
        tape.scratch(pairs * 2 * part.intermediate * hidden * x.item, "index")
    selected = ops.gather(tape, x, pairs * hidden)
    out, proj = _experts(run, part, name, selected, weights)
    out = ops.gather(tape, out, out.numel)
    out = ops.cast(tape, ops.add_up(tape, out, run.rows * hidden), x.item)
    del selected, proj  # the modelling code keeps their names to its end
    return out


def _one_by_one(run: Pass, part: Mlp, name: str, x: Tensor, weights: Tensor, pairs: int) -> Tensor:
    """One expert at a time: in inference each one's buffers go before the next one's come."""
    tape, hidden = run.tape, run.architecture.hidden
    mask = tape.new(pairs * (part.experts + 1), INT64, "one_hot", KERNEL_BUFFERS)
    total = tape.new(run.rows * hidden, x.item, "zeros_like")
    taken = pairs if tape.recording else -(-pairs // part.experts)
    state = ops.gather(tape, x, taken * hidden)
    out, proj = _experts(run, part, name, state, ops.gather(tape, weights, taken))
    del mask, state, proj
    return tape.record("index_add", total, (out,), (), ops.fresh)


def _experts(run: Pass, part: Mlp, name: str, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Stacked projections of the chosen pairs, ``[pairs, hidden]``: weighted, and as they were."""
    tape, hidden = run.tape, run.architecture.hidden
    pairs, stacked = x.numel // hidden, part.experts * part.intermediate * hidden
    proj = ops.grouped_linear(
        tape, x, run.weight(f"{name}.experts.gate_up", 2 * stacked), pairs * 2 * part.intermediate
    )
    gate, up = ops.split(tape, proj, (pairs * part.intermediate,) * 2)
    inner = ops.multiply(tape, activate(tape, part.activation, gate), up)
    del gate, up, proj
    out = ops.grouped_linear(tape, inner, run.weight(f"{name}.experts.down", stacked), pairs * hidden)
    return ops.multiply(tape, out, weights), out
