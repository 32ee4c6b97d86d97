"""What a workload tells whoever is watching it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch


class Observer(Protocol):
    """A watcher of a run: the ledger, a stopwatch, or several at once."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Everything inside belongs to that phase of the report."""
        ...

    def mark(self, component: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """These tensors belong to that component of the report."""
        ...


@dataclass(frozen=True)
class Unobserved:
    """Nobody watches."""

    def phase(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """No-op."""
        return nullcontext()

    def mark(self, component: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """No-op."""


Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""
