"""What an optimizer's memory depends on: what it trains, and what a recipe asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple, Protocol

from mem_gpt_cli.recipe.schema import Recipe

Implementation = Literal["loop", "foreach", "fused"]

DEFAULT_RANK = 128
DEFAULT_UPDATE_EVERY = 200
CHOOSES_FOREACH_ON_CUDA = ("adamw", "sgd")


class Parameter(NamedTuple):
    """A tensor that is trained: its shape, the bytes of an element, and whether it lies in a layer."""

    shape: tuple[int, ...]
    item: int
    in_layer: bool = False

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes, which are also those of its gradient."""
        return self.numel * self.item


class Books(Protocol):
    """Where a step writes down what it allocates."""

    def keep(self, nbytes: int, operation: str) -> None:
        """Book a tensor of the state, which stays."""

    def take(self, nbytes: int, operation: str) -> object:
        """Book a temporary, which lives as long as the answer is referred to."""


@dataclass(frozen=True)
class Settings:
    """What of a recipe an optimizer's memory depends on, with ``auto`` and ``null`` resolved."""

    name: str = "adamw"
    implementation: Implementation = "loop"
    cuda: bool = False
    decays: bool = True
    momentum: bool = False
    rank: int = DEFAULT_RANK
    bits: int = 32

    @classmethod
    def of(cls, recipe: Recipe) -> Settings:
        """Read them off a recipe."""
        section = recipe.optimizer
        return cls(
            name=section.name,
            implementation=implementation(section.name, section.implementation, recipe.device.type),
            cuda=recipe.device.type == "cuda",
            decays=section.weight_decay > 0,
            momentum=bool(section.momentum),
            rank=section.rank or DEFAULT_RANK,
            bits=section.bits or 32,
        )


def implementation(name: str, asked: str, device: str) -> Implementation:
    """The code that runs: ``auto`` is a loop on CPU, foreach on CUDA where torch has the choice.

    Source: ``_default_to_fused_or_foreach`` in torch/optim/optimizer.py, which AdamW and SGD ask; Adafactor
    does not (torch/optim/_adafactor.py).
    """
    if asked == "auto":
        return "foreach" if device == "cuda" and name in CHOOSES_FOREACH_ON_CUDA else "loop"
    return asked  # type: ignore[return-value]
