"""The optimizer's step on paper: what it keeps, and what it takes for a moment."""

from __future__ import annotations

from mem_gpt_cli.estimate.books import OPTIMIZER_STATE, OPTIMIZER_TEMPORARIES, Storage
from mem_gpt_cli.estimate.decoder import Decoder
from mem_gpt_cli.estimate.parameters import trainable
from mem_gpt_cli.optimizers import cost
from mem_gpt_cli.optimizers.settings import Settings


class Optimizer:
    """The recipe's optimizer over all that it trains; its state is made by its first step."""

    def __init__(self, decoder: Decoder) -> None:
        self.ledger = decoder.ledger
        self.parameters = trainable(decoder.architecture, decoder.recipe)
        self.settings = Settings.of(decoder.recipe)
        self._state: list[Storage] = []

    @property
    def gradient_bytes(self) -> int:
        """All gradients."""
        return sum(parameter.nbytes for parameter in self.parameters)

    def make_state(self) -> None:
        """Book what is kept between steps, without a step."""
        self.keep(cost.state_bytes(self.parameters, self.settings), "zeros_like")

    def step(self) -> None:
        """Book what a step keeps, if it is the first, and what it takes for a moment."""
        cost.step(self, self.parameters, self.settings, first=not self._state)

    def keep(self, nbytes: int, operation: str) -> None:
        """Book a tensor of the state."""
        self._state.append(Storage(self.ledger, OPTIMIZER_STATE, nbytes, operation))

    def take(self, nbytes: int, operation: str) -> Storage:
        """Book a temporary."""
        return Storage(self.ledger, OPTIMIZER_TEMPORARIES, nbytes, operation)
