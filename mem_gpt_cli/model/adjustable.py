"""What options ask of a model that is loaded already: itself, under other values of its recipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol, Self

from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    import torch


class Adjustable(Protocol):
    """A text model (``mem_gpt_cli.load``), as the rooms of its options see it."""

    @property
    def recipe(self) -> Recipe:
        """The options that it has now."""
        ...

    @property
    def model(self) -> torch.nn.Module:
        """The torch model."""
        ...

    def with_options(self, **sections: dict[str, Any]) -> Self:
        """The same torch model under other options; raises a ``MemgptError`` where they cannot stand."""
        ...


def tell(sentence: str) -> None:
    """Say to the user of a Python shell or script what was not to be had, and why."""
    print(f"memgpt: {sentence}", file=sys.stderr)
