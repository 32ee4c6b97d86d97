"""What an optimizer keeps between steps, and what a step needs for a moment, by the shapes of what it trains.

Each optimizer's step is written down once, as the tensors that it makes in their order: in ``torch_steps``,
``bitsandbytes_steps`` and ``galore_steps``. Led over a counter it gives the sums here; over a formula's books
a curve; over the model of CUDA's allocator, blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.optimizers import bitsandbytes_steps, galore_steps, torch_steps
from mem_gpt_cli.optimizers.settings import Books, Parameter, Settings

_STEPS = {
    "adamw": torch_steps.adamw,
    "sgd": torch_steps.sgd,
    "adafactor": torch_steps.adafactor,
    "adamw_8bit": bitsandbytes_steps.step,
    "paged_adamw_8bit": bitsandbytes_steps.step,
    "lion_8bit": bitsandbytes_steps.step,
    "galore": galore_steps.step,
}


def step(books: Books, parameters: Sequence[Parameter], settings: Settings, *, first: bool) -> None:
    """Write down one step: what it keeps, if it is the ``first``, and what it takes for a moment."""
    _STEPS[settings.name](books, parameters, settings, first=first)


def state_bytes(parameters: Sequence[Parameter], settings: Settings) -> int:
    """Bytes that are kept between steps, as torch's allocator counts them on CPU."""
    counter = _Counter()
    step(counter, parameters, settings, first=True)
    return counter.kept


def step_bytes(parameters: Sequence[Parameter], settings: Settings) -> int:
    """Bytes that live only within a step, at its highest, once the state is there."""
    counter = _Counter()
    step(counter, parameters, settings, first=False)
    return counter.most


class _Taken:
    """A temporary on a counter's books."""

    def __init__(self, counter: _Counter, nbytes: int) -> None:
        self._counter = counter
        self._nbytes = nbytes
        counter.change(nbytes)

    def __del__(self) -> None:
        self._counter.change(-self._nbytes)


class _Counter:
    """Adds up what is kept, and finds the most that was taken at once."""

    def __init__(self) -> None:
        self.kept = self.most = self._taken = 0

    def keep(self, nbytes: int, operation: str) -> None:  # noqa: ARG002
        """See ``Books``."""
        self.kept += nbytes

    def take(self, nbytes: int, operation: str) -> object:  # noqa: ARG002
        """See ``Books``."""
        return _Taken(self, nbytes)

    def change(self, nbytes: int) -> None:
        """More or less is taken now."""
        self._taken += nbytes
        self.most = max(self.most, self._taken)
