"""Updates against the plain method: GaLore, 8 bits; gradients clipped or summed up, bf16, frozen weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.ledger.allocator import record_allocator
from mem_gpt_cli.optimizers import cost
from mem_gpt_cli.optimizers.build import build_optimizer, listed, state_tensors
from mem_gpt_cli.optimizers.galore import SCALE, GaLore, renew
from mem_gpt_cli.optimizers.settings import Settings
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe

IMPLEMENTATIONS = ("loop", "foreach", "fused")
ALL: tuple[dict[str, Any], ...] = (
    *({"name": "adamw", "implementation": one} for one in IMPLEMENTATIONS),
    *({"name": "sgd", "implementation": one} for one in IMPLEMENTATIONS),
    *({"name": "sgd", "momentum": 0.9, "implementation": one} for one in IMPLEMENTATIONS),
    {"name": "sgd", "momentum": 0.5, "weight_decay": 0},
    {"name": "adafactor"},
    {"name": "adamw_8bit"},
    {"name": "lion_8bit"},
    {"name": "galore", "rank": 8},
    {"name": "galore", "rank": 8, "bits": 8},
)


RATES = {"sgd": 0.02, "adafactor": 0.05, "lion_8bit": 2e-3}
IN_BF16 = [one for one in ALL if not (one["name"] == "sgd" and one.get("implementation") == "fused")]
"""torch's fused SGD changes nothing that is of less than fp32 on CPU."""


IN_EITHER = [
    (one, dtype)
    for number, one in enumerate(ALL)
    for dtype in (torch.float32, torch.bfloat16)
    if one["name"] not in ("adamw", "sgd") or (number % 2 == 0) == (dtype == torch.float32)
]
"""Each in both dtypes, torch's own in one of them by turns."""


class Net(torch.nn.Module):
    """Two layers, the first as ``nn.Linear`` lies and the second as GPT-2's ``Conv1D``."""

    def __init__(self, width: int = 96, hidden: int = 160) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, width)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(width, hidden)])
        self.out = torch.nn.ParameterDict({"0": torch.randn(hidden, width) * 0.1})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.layers[0](self.embedding(tokens)))
        logits: torch.Tensor = hidden @ self.out["0"] @ self.embedding.weight.T
        return logits


def recipe_of(optimizer: dict[str, Any], **sections: Any) -> Recipe:
    data = {"model": {"name": "gpt2"}, "task": "training", "device": {"name": "cpu"}}
    return Recipe.model_validate({**data, "optimizer": optimizer, **sections})


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def loss_of(model: Net, seed: int = 1) -> torch.Tensor:
    """How well the net says of each token the one that always comes after it."""
    tokens = torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.cross_entropy(
        model(tokens).float().flatten(0, 1), (7 * tokens + 3).remainder(50).flatten()
    )


def trained(optimizer: dict[str, Any], steps: int = 3, **how: Any) -> Net:
    """A net after some steps; ``how`` may clip, accumulate, freeze or change the dtype."""
    model = net(how.get("dtype", torch.float32))
    if how.get("freeze"):
        model.embedding.weight.requires_grad_(False)
    built = build_optimizer(recipe_of({"lr": 1e-2, **optimizer}), model)
    for step in range(steps):
        for part in range(how.get("accumulate", 1)):
            loss_of(model, seed=10 * step + part).backward()
        if "clip" in how:
            torch.nn.utils.clip_grad_norm_(model.parameters(), how["clip"])
        built.step()
        built.zero_grad()
    return model


def distance(one: Net, other: Net, start: Net) -> float:
    """How far two trained nets lie apart, as a part of how far they came."""
    flat = [torch.cat([p.detach().double().flatten() for p in n.parameters()]) for n in (one, other, start)]
    return float((flat[0] - flat[1]).norm() / (flat[1] - flat[2]).norm())


HOW: tuple[dict[str, Any], ...] = (
    {},
    {"clip": 0.05},
    {"accumulate": 3},
    {"freeze": True},
    {"clip": 0.1, "accumulate": 2},
)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_eight_bits_stay_near_thirty_two(how: dict[str, Any]) -> None:
    exact = trained({"name": "adamw"}, **how)
    assert 0 < distance(trained({"name": "adamw_8bit"}, **how), exact, net()) < 0.03
    galore = trained({"name": "galore", "rank": 8}, **how)
    assert 0 < distance(trained({"name": "galore", "rank": 8, "bits": 8}, **how), galore, net()) < 0.03


@pytest.mark.parametrize("how", [*HOW, {"dtype": torch.bfloat16}], ids=str)
def test_galore_of_full_rank_is_adamw(how: dict[str, Any]) -> None:
    dtype = how.get("dtype", torch.float32)
    full = trained({"name": "galore", "rank": 96}, **how)
    assert distance(full, trained({"name": "adamw", "implementation": "fused"}, **how), net(dtype)) < 1e-6
    assert distance(trained({"name": "galore", "rank": 95}, **how), full, net(dtype)) > 0.05


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("optimizer", [{"name": "adamw"}, {"name": "sgd", "momentum": 0.9}], ids=str)
def test_the_implementations_agree(optimizer: dict[str, Any], implementation: str) -> None:
    loop = trained({**optimizer, "implementation": "loop"})
    other = trained({**optimizer, "implementation": implementation})
    assert distance(other, loop, net()) < 1e-4


@pytest.mark.parametrize("optimizer", ALL, ids=str)
def test_every_optimizer_learns_and_leaves_the_frozen_alone(optimizer: dict[str, Any]) -> None:
    rate = RATES.get(optimizer["name"], 1e-2)
    model = trained({**optimizer, "lr": rate}, steps=12, freeze=True)
    assert loss_of(model) < 0.05
    assert torch.equal(model.embedding.weight, net().embedding.weight)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("optimizer", IN_BF16, ids=str)
def test_every_optimizer_learns_in_bf16(optimizer: dict[str, Any]) -> None:
    rate = RATES.get(optimizer["name"], 1e-2)
    model = trained({**optimizer, "lr": rate}, steps=12, dtype=torch.bfloat16)
    assert loss_of(model) < 0.05


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (48, 48)])
def test_a_projected_update_is_adams_in_the_strongest_directions(shape: tuple[int, int]) -> None:
    """The formulas of the paper, written out in fp64: two steps, with decay."""
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(shape))
    reference = weight.detach().double()
    optimizer = GaLore([{"params": [weight], "rank": 6}], lr=0.1, weight_decay=0.2)
    first = second = torch.zeros((), dtype=torch.float64)
    left = shape[0] <= shape[1]
    directions = torch.empty(0)
    for step in (1, 2):
        weight.grad = torch.randn(shape)
        gradient = weight.grad.double()
        if step == 1:
            u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
            directions = u[:, :6] if left else vh[:6].T
        low = directions.T @ gradient if left else gradient @ directions
        first = 0.9 * first + 0.1 * low
        second = 0.999 * second + 0.001 * low**2
        update = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        back = directions @ update if left else update @ directions.T
        reference = reference * (1 - 0.1 * 0.2) - 0.1 * SCALE * back
        optimizer.step()
    assert torch.allclose(weight.double(), reference, atol=1e-4)
    assert optimizer.state[weight]["directions"].shape == (min(shape), 6)


def test_directions_are_taken_anew_as_often_as_asked() -> None:
    weight = torch.nn.Parameter(torch.randn(20, 30))
    optimizer = GaLore([{"params": [weight], "rank": 4}], update_every=2)
    seen = []
    for _ in range(4):
        weight.grad = torch.randn(20, 30)
        optimizer.step()
        seen.append(optimizer.state[weight]["directions"].clone())
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[1], seen[2])


def test_directions_are_orthonormal_in_bf16_as_far_as_it_goes() -> None:
    directions = torch.empty(32, 8, dtype=torch.bfloat16)
    renew(directions, torch.randn(32, 50, dtype=torch.bfloat16))
    assert torch.allclose(directions.float().T @ directions.float(), torch.eye(8), atol=0.02)


@pytest.mark.parametrize(("optimizer", "dtype"), IN_EITHER, ids=str)
def test_a_saved_state_goes_on_bit_for_bit(optimizer: dict[str, Any], dtype: torch.dtype) -> None:
    model = net(dtype)
    built = build_optimizer(recipe_of(optimizer), model)
    _steps(model, built, range(2))
    again = copy.deepcopy(model)
    rebuilt = build_optimizer(recipe_of(optimizer), again)
    rebuilt.load_state_dict(copy.deepcopy(built.state_dict()))
    _steps(model, built, range(2, 4))
    _steps(again, rebuilt, range(2, 4))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [t.dtype for t in state_tensors(rebuilt)] == [t.dtype for t in state_tensors(built)]


@pytest.mark.parametrize(("optimizer", "dtype"), IN_EITHER, ids=str)
def test_what_a_step_takes_for_a_moment(optimizer: dict[str, Any], dtype: torch.dtype) -> None:
    """The formula against the allocator's own record of a step whose state is there."""
    if dtype == torch.bfloat16 and optimizer["name"] in ("adafactor", "galore"):
        pytest.skip("a product in bf16 takes what the processor wants: the trace asks, the formula says so")
    model, recipe = (
        net(dtype),
        recipe_of({**optimizer, "update_every": 1} if optimizer["name"] == "galore" else optimizer),
    )
    built = build_optimizer(recipe, model)
    _steps(model, built, range(1))
    loss_of(model).backward()
    with record_allocator() as record:
        built.step()
    live = highest = 0
    for event in record.events:
        live += event.nbytes
        highest = max(highest, live)
    assert highest == pytest.approx(cost.step_bytes(listed(model), Settings.of(recipe)), abs=1024, rel=0.02)


def test_what_cannot_be_is_refused_with_the_reason() -> None:
    with pytest.raises(MemgptError, match="nothing to move"):
        refuse_unavailable(recipe_of({"name": "paged_adamw_8bit"}), "trace")
    with pytest.raises(MemgptError, match="low rank already"):
        refuse_unavailable(recipe_of({"name": "galore"}, adapters={"kind": "lora"}), "estimate")
    fused = {"name": "sgd", "implementation": "fused"}
    with pytest.raises(MemgptError, match="changes nothing"):
        refuse_unavailable(recipe_of(fused, model={"name": "gpt2", "dtype": "bf16"}), "profile")
    refuse_unavailable(recipe_of(fused), "profile")
    refuse_unavailable(recipe_of({"name": "paged_adamw_8bit"}, device={"name": "h100"}), "estimate")


def _steps(model: Net, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for step in numbers:
        optimizer.zero_grad()
        loss_of(model, seed=step).backward()
        optimizer.step()
