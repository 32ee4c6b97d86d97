"""GaLore (arXiv:2403.03507): AdamW whose moments of a matrix live in a few directions of its gradient.

The gradient of a matrix is projected onto its strongest singular vectors, on the shorter side; the moments
are those of the projected gradient, and the update is projected back onto the weights. Any matrix will do,
whichever way it lies: GPT-2's ``Conv1D`` as well as ``nn.Linear``.

All state is made before anything is updated, so that the first step has the memory of all that renew the
directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch

from mem_gpt_cli.optimizers import bitsandbytes_steps as quantized
from mem_gpt_cli.optimizers.galore_steps import low_rank_shape

SCALE = 0.25
"""Of a projected update: alpha in the paper, which it keeps for all sizes of models."""


class GaLore(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101), in groups with a ``rank`` by projected gradients.

    Args:
        params: groups; one with a ``rank`` holds matrices of which neither side is that short.
        lr: learning rate; of projected updates it is scaled by ``SCALE``.
        betas: decay of the two moments.
        eps: what is added to the root of the second moment.
        weight_decay: decoupled.
        update_every: steps after which the directions are taken from the gradient anew.
        bits: 32 keeps the moments in the weights' dtype; 8 keeps a byte each and a maximum for each block of
            256, as bitsandbytes does, where there are at least 4096.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        update_every: int = 200,
        bits: int = 32,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "update_every": update_every,
            "rank": None,
        }
        super().__init__(params, defaults)
        self._moments = Moments8Bit() if bits == 8 else Moments()

    @property
    def maps(self) -> tuple[torch.Tensor, ...]:
        """The numbers that codes of 8 bits stand for; all parameters share them."""
        return self._moments.maps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, group in trained:
            if not self.state[parameter]:
                self.state[parameter] = self._new_state(parameter, group["rank"])
        for parameter, group in trained:
            self.state[parameter]["step"] += 1
            if group["rank"] is None:
                self._moments.update(parameter, parameter.grad, self.state[parameter], group)
            else:
                self._update_projected(parameter, self.state[parameter], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state; torch would bring codes and maxima to the dtype of the weights."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor):
                    self.state[parameter][key] = value.to(parameter.device, copy=True)

    def _new_state(self, parameter: torch.Tensor, rank: int | None) -> dict[str, Any]:
        state: dict[str, Any] = {"step": 0}
        shape = tuple(parameter.shape)
        if rank is not None:
            state["directions"] = parameter.new_empty(min(shape), rank)
            shape = low_rank_shape(shape, rank)
        return state | self._moments.of(parameter, shape)

    def _update_projected(
        self, parameter: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        directions, gradient = state["directions"], parameter.grad
        assert gradient is not None
        if (state["step"] - 1) % group["update_every"] == 0:
            renew(directions, gradient)
        left = gradient.shape[0] <= gradient.shape[1]
        projected = directions.T @ gradient if left else gradient @ directions
        update = torch.zeros_like(projected)
        self._moments.update(update, projected, state, {**group, "weight_decay": 0.0})
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        if left:
            parameter.addmm_(directions, update, alpha=SCALE)
        else:
            parameter.addmm_(update, directions.T, alpha=SCALE)


def renew(directions: torch.Tensor, gradient: torch.Tensor) -> None:
    """The strongest singular vectors of a gradient, on its shorter side, in fp32 whatever its dtype.

    Args:
        directions: ``[shorter side, rank]``; written to.
        gradient: ``[rows, columns]``.
    """
    rank = directions.shape[1]
    u, _, vh = torch.linalg.svd(gradient.float(), full_matrices=False)
    directions.copy_(u[:, :rank] if gradient.shape[0] <= gradient.shape[1] else vh[:rank].T)


class Moments:
    """Two moments in the dtype of the weights, and torch's fused AdamW over them."""

    maps: tuple[torch.Tensor, ...] = ()

    def of(self, parameter: torch.Tensor, shape: tuple[int, ...]) -> dict[str, Any]:
        """The moments of gradients of a shape."""
        return {"exp_avg": parameter.new_zeros(shape), "exp_avg_sq": parameter.new_zeros(shape)}

    def update(
        self, target: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Advance the moments by a gradient, and ``target`` by the update."""
        beta1, beta2 = group["betas"]
        step = torch.full((), float(state["step"]), dtype=torch.float32, device=target.device)
        torch._fused_adamw_(
            [target],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [step],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


class Moments8Bit:
    """Two moments of a byte an element where there are enough of them, else in fp32, by bitsandbytes."""

    def __init__(self) -> None:
        from bitsandbytes import functional

        self._functional = functional
        self.maps: tuple[torch.Tensor, ...] = (
            functional.create_dynamic_map(signed=True),
            functional.create_dynamic_map(signed=False),
        )

    def of(self, parameter: torch.Tensor, shape: tuple[int, ...]) -> dict[str, Any]:
        """The moments of gradients of a shape, and the maximum of each of their blocks."""
        in_8_bits = quantized.in_8_bits(prod(shape))
        dtype = torch.uint8 if in_8_bits else torch.float32
        state = {name: parameter.new_zeros(shape, dtype=dtype) for name in ("state1", "state2")}
        if in_8_bits:
            self.maps = tuple(numbers.to(parameter.device) for numbers in self.maps)
            blocks = quantized.blocks(prod(shape))
            for name in ("absmax1", "absmax2"):
                state[name] = parameter.new_zeros(blocks, dtype=torch.float32)
        return state

    def update(
        self, target: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Advance the moments by a gradient, and ``target`` by the update."""
        beta1, beta2 = group["betas"]
        one, two = state["state1"], state["state2"]
        eps, step, lr, decay = group["eps"], state["step"], group["lr"], group["weight_decay"]
        if "absmax1" not in state:
            self._functional.optimizer_update_32bit(
                "adam", gradient, target, one, beta1, eps, step, lr, two, beta2, weight_decay=decay
            )
            return
        self._functional.optimizer_update_8bit_blockwise(
            "adam",
            gradient,
            target,
            one,
            two,
            beta1,
            beta2,
            0.0,
            0.0,
            eps,
            step,
            lr,
            *self.maps,
            state["absmax1"],
            state["absmax2"],
            decay,
        )
