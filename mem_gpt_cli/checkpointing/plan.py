"""Which layers run again in backward and what of them is kept, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mem_gpt_cli.recipe.schema import Checkpointing

Kept = Literal["attention", "products"]

EVERY = 2
"""Of that many layers one runs again, where the recipe does not say."""
KEPT: frozenset[Kept] = frozenset({"attention", "products"})
"""What ``selective`` keeps, where the recipe does not say."""


@dataclass(frozen=True)
class Plan:
    """Checkpointing as a recipe asks for it.

    ``keep`` are the operations whose results a layer keeps beside its input: none but under ``selective``.
    """

    policy: str = "none"
    every: int = 1
    keep: frozenset[Kept] = frozenset()

    @classmethod
    def of(cls, section: Checkpointing) -> Plan:
        """The recipe's values, or those that stand in for them."""
        every = (section.every or EVERY) if section.policy == "every_n" else 1
        keep = frozenset(section.keep or KEPT) if section.policy == "selective" else frozenset()
        return cls(section.policy, every, keep)

    def recomputes(self, layer: int) -> bool:
        """Whether the layer of that number runs again in backward: layer 0, and each n-th after it."""
        return self.policy in ("full", "every_n", "selective") and layer % self.every == 0

    @property
    def offloads(self) -> bool:
        """Whether what the layers save for backward waits in the host's memory."""
        return self.policy == "offload"
