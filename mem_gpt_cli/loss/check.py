"""Which models a loss other than the full one can be computed of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.loss.head import Halves
from mem_gpt_cli.recipe.schema import Recipe

_PRODUCTS = frozenset({"mm", "addmm", "linear"})
_MOVES = frozenset(
    {"view", "_unsafe_view", "t", "transpose", "slice", "alias", "detach", "clone", "_to_copy", "unsqueeze"}
)


def check_loss(model: torch.nn.Module, recipe: Recipe) -> None:
    """Pass a model of which the recipe's loss is the one that the model itself would compute.

    Args:
        model: the model on ``meta``, with all options of the recipe.
        recipe: its options.

    Raises:
        UnsupportedError: for a model whose loss or logits are made otherwise.
    """
    kind = recipe.loss.kind
    if recipe.task != "training" or kind == "full":
        return
    from transformers.loss.loss_utils import ForCausalLMLoss

    config: Any = model.config
    if model.loss_function is not ForCausalLMLoss or getattr(config, "output_router_logits", False):
        raise UnsupportedError(
            f"loss.kind: {kind} is the cross entropy of the next token alone, and the loss of "
            f"{config.model_type} with this config has more to it: leave loss.kind at full"
        )
    if kind == "fused":
        _check_plain(model, str(config.model_type))


def _check_plain(model: torch.nn.Module, name: str) -> None:
    matrix = model.get_output_embeddings()  # type: ignore[operator]
    if type(matrix) is not torch.nn.Linear:
        raise UnsupportedError(
            f"linear_cross_entropy wants an output matrix in full, not a {type(matrix).__name__}: "
            "write loss.kind: chunked"
        )
    more = _beyond_one_product(model, matrix)
    if more:
        raise UnsupportedError(
            f"{name} makes its logits by more than one product ({', '.join(more)}), and "
            "linear_cross_entropy does not: write loss.kind: chunked"
        )


def _beyond_one_product(model: torch.nn.Module, matrix: torch.nn.Linear) -> list[str]:
    """What the model's own way from hidden states to logits computes beside one product."""
    hidden = torch.empty(1, 1, matrix.in_features, dtype=matrix.weight.dtype, device=matrix.weight.device)
    with torch.no_grad(), _Operators() as operators:
        Halves(model).logits(_Decoded(hidden), hidden)
    names = [name for name in operators.names if name not in _MOVES]
    products = [name for name in names if name in _PRODUCTS]
    return [name for name in names if name not in _PRODUCTS] + products[1:]


class _Decoded(tuple[torch.Tensor]):
    """What a decoder answers: hidden states, and ``None`` for all else that a model may ask for."""

    last_hidden_state: torch.Tensor

    def __new__(cls, hidden: torch.Tensor) -> _Decoded:
        return super().__new__(cls, (hidden,))

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Operators(TorchDispatchMode):
    """The names of the operators that run while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.names.append(func._opname)
        return func(*args, **(kwargs or {}))
