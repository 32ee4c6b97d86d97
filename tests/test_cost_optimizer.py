"""The optimizer's cost against torch's own AdamW."""

from __future__ import annotations

import pytest
import torch

from mem_gpt_cli.optimizers import cost

SHAPES = [(50, 8), (8,), (8, 32), (32,), (32, 8), (3,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_of_adamw(dtype: torch.dtype) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert held == cost.state_bytes([parameter.nbytes for parameter in parameters])


def test_a_loop_still_holds_the_quotient_of_the_parameter_before() -> None:
    assert cost.step_bytes([100, 10, 40], "loop") == 200
    assert cost.step_bytes([10, 100, 90], "loop") == 280


def test_foreach_takes_all_roots_at_once_and_fused_none() -> None:
    assert cost.step_bytes([100, 10, 40], "foreach") == 150
    assert cost.step_bytes([100, 10, 40], "fused") == 0
    assert cost.step_bytes([], "loop") == 0


def test_auto_is_what_torch_picks() -> None:
    assert cost.implementation("auto", "cpu") == "loop"
    assert cost.implementation("auto", "cuda") == "foreach"
    assert cost.implementation("fused", "cpu") == "fused"
