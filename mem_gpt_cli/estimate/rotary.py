"""Rotary positions (arXiv:2104.09864) on queries and keys."""

from __future__ import annotations

from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.tape import Tape, Tensor
from mem_gpt_cli.model.architecture import Attention


def rotate_both(run: Pass, part: Attention, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions on queries and keys; where they are partial, the rest of a head passes."""
    share = part.rotary_dim / part.head_dim
    if share == 1:
        return rotate(run, q), rotate(run, k)
    q_turn, q_pass = _cut(run.tape, q, share)
    k_turn, k_pass = _cut(run.tape, k, share)
    q_turn, k_turn = rotate(run, q_turn), rotate(run, k_turn)
    q = ops.concatenate(run.tape, (q_turn, q_pass))
    k = ops.concatenate(run.tape, (k_turn, k_pass))
    return q, k


def _cut(tape: Tape, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    turned = int(x.numel * share)
    return ops.part(tape, x, turned), ops.part(tape, x, x.numel - turned)


def rotate(run: Pass, x: Tensor) -> Tensor:
    """``x * cos + rotate_half(x) * sin``."""
    cos, sin = run.rotary[0]  # every kind of layer has tables of the same size
    tape = run.tape
    turned = ops.multiply(tape, x, cos)
    crossed = ops.multiply(tape, _rotate_half(tape, x), sin)
    return ops.add(tape, turned, crossed)


def _rotate_half(tape: Tape, x: Tensor) -> Tensor:
    first, second = ops.part(tape, x, x.numel // 2), ops.part(tape, x, x.numel - x.numel // 2)
    out = ops.concatenate(tape, (ops.pointwise(tape, "neg", second), first))
    out.permuted = x.permuted
    return out
