"""What optimizers cost by shapes alone, against the code that keeps and takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mem_gpt_cli.optimizers import cost
from mem_gpt_cli.optimizers.build import build_optimizer, state_tensors
from mem_gpt_cli.optimizers.settings import Parameter, Settings, implementation
from mem_gpt_cli.recipe.schema import Recipe

SHAPES = [(70, 60), (200,), (300, 32), (32,), (48, 160), (3,)]
OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "adamw"},
    {"name": "adamw", "implementation": "fused"},
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9, "implementation": "foreach"},
    {"name": "adafactor"},
    {"name": "adamw_8bit"},
    {"name": "lion_8bit"},
    {"name": "galore", "rank": 16},
    {"name": "galore", "rank": 40, "bits": 8},
]


def recipe_of(**optimizer: Any) -> Recipe:
    return Recipe.model_validate(
        {"model": {"name": "gpt2"}, "task": "training", "device": {"name": "cpu"}, "optimizer": optimizer}
    )


class Layers(torch.nn.Module):
    """Parameters of the shapes above; those of even places lie in a layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        made = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
        self.inside = torch.nn.ModuleList([torch.nn.ParameterList(made[::2])])
        self.outside = torch.nn.ParameterList(made[1::2])

    def listed(self) -> list[Parameter]:
        """As a formula would list them."""
        return [
            Parameter(tuple(p.shape), p.element_size(), name.startswith("inside"))
            for name, p in self.named_parameters()
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_state(optimizer: dict[str, Any], dtype: torch.dtype) -> None:
    recipe, model = recipe_of(**optimizer), Layers(dtype)
    built = build_optimizer(recipe, model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    built.step()
    held = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in state_tensors(built)}
    counted = sum(storage.nbytes() for storage in held.values())
    assert counted == cost.state_bytes(model.listed(), Settings.of(recipe))


def test_a_loop_still_holds_the_quotient_of_the_parameter_before() -> None:
    assert _adamw([100, 10, 40], "loop") == 200
    assert _adamw([10, 100, 90], "loop") == 280


def test_foreach_takes_all_roots_at_once_and_fused_none() -> None:
    assert _adamw([100, 10, 40], "foreach") == 150
    assert _adamw([100, 10, 40], "fused") == 0
    assert _adamw([], "loop") == 0


def test_auto_is_what_torch_picks() -> None:
    assert implementation("adamw", "auto", "cpu") == "loop"
    assert implementation("sgd", "auto", "cuda") == "foreach"
    assert implementation("adafactor", "auto", "cuda") == "loop"
    assert implementation("adamw", "fused", "cpu") == "fused"


def _adamw(sizes: list[int], chosen: Any) -> int:
    return cost.step_bytes([Parameter((size,), 1) for size in sizes], Settings(implementation=chosen))
