"""The feed-forward part of a layer, dense."""

from __future__ import annotations

from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.activation import activate
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.tape import Tensor
from mem_gpt_cli.model.architecture import Mlp


def dense_mlp(run: Pass, part: Mlp, name: str, x: Tensor, width: int) -> Tensor:
    """``down(act(gate(x)) * up(x))`` where the MLP is gated, else ``down(act(up(x)))``."""
    inner = _gated(run, part, name, x, width) if part.gated else _plain(run, part, name, x, width)
    return run.project(inner, f"{name}.down", width, run.architecture.hidden)


def _plain(run: Pass, part: Mlp, name: str, x: Tensor, width: int) -> Tensor:
    inner = run.project(x, f"{name}.up", run.architecture.hidden, width)
    if run.dialect.inlines_mlp:
        x.release()
    return activate(run.tape, part.activation, inner)


def _gated(run: Pass, part: Mlp, name: str, x: Tensor, width: int) -> Tensor:
    tape, hidden = run.tape, run.architecture.hidden
    gate = activate(tape, part.activation, run.project(x, f"{name}.gate", hidden, width))
    up = run.project(x, f"{name}.up", hidden, width)
    return ops.multiply(tape, gate, up)
