"""The optimizer's step on paper: what it keeps, and what it takes for a moment."""

from __future__ import annotations

from mem_gpt_cli.estimate.books import OPTIMIZER_STATE, OPTIMIZER_TEMPORARIES, Storage
from mem_gpt_cli.estimate.decoder import Decoder
from mem_gpt_cli.estimate.parameters import parameter_bytes
from mem_gpt_cli.optimizers import cost as optimizer_cost


def optimizer_of(decoder: Decoder) -> Optimizer:
    """The recipe's optimizer, on the recipe's device."""
    return (CardOptimizer if decoder.cuda else Optimizer)(decoder)


class Optimizer:
    """AdamW over all parameters at once; its state is made by its first step."""

    def __init__(self, decoder: Decoder) -> None:
        self.ledger = decoder.ledger
        self.sizes = parameter_bytes(decoder.architecture, decoder.item)
        self.implementation = optimizer_cost.implementation(
            decoder.recipe.optimizer.implementation, decoder.recipe.device.type
        )
        self.state: list[Storage] = []

    @property
    def gradient_bytes(self) -> int:
        """All gradients."""
        return sum(self.sizes)

    def make_state(self) -> None:
        """Book what is kept between steps."""
        self._keep(optimizer_cost.state_bytes(self.sizes))

    def step(self) -> None:
        """Book what a step keeps, if it is the first, and what it takes for a moment."""
        if not self.state:
            self.make_state()
        self._take(optimizer_cost.step_bytes(self.sizes, self.implementation), "optimizer.step")

    def _keep(self, nbytes: int) -> None:
        self.state.append(Storage(self.ledger, OPTIMIZER_STATE, nbytes, "zeros_like"))

    def _take(self, nbytes: int, operation: str) -> Storage:
        return Storage(self.ledger, OPTIMIZER_TEMPORARIES, nbytes, operation)


class CardOptimizer(Optimizer):
    """AdamW tensor by tensor, as its code makes them; counters are on the card for the fused step alone.

    torch/optim/adam.py: ``_init_group``, ``_single_tensor_adam``, ``_multi_tensor_adam``.
    """

    def make_state(self) -> None:
        """The two moments of each parameter, after its counter."""
        for nbytes in self.sizes:
            if self.implementation == "fused":
                self._keep(optimizer_cost.STEP_COUNTER)
            self._keep(nbytes)
            self._keep(nbytes)

    def step(self) -> None:
        """Roots of the second moments: all at once (foreach), or one by one and divided (loop)."""
        if not self.state:
            self.make_state()
        if self.implementation == "foreach":
            roots = [self._take(nbytes, "_foreach_sqrt") for nbytes in self.sizes]
            del roots
        elif self.implementation == "loop":
            divided: Storage | None = None
            for nbytes in self.sizes:
                root = self._take(nbytes, "sqrt")
                quotient = self._take(nbytes, "div")
                del root
                divided = quotient  # the name goes over to the new one only now
            del divided, quotient
