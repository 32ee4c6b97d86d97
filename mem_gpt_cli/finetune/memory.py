"""How much memory a step of training takes, measured while it trains.

On a GPU torch's allocator counts all the time. On the CPU it tells its profiler of every allocation: one step
is recorded, the second, in which the optimizer's state is there, and what the model held before is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch

from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.ledger.allocator import record_allocator
from mem_gpt_cli.optimizers.build import state_tensors
from mem_gpt_cli.quantization.modules import stored_tensors

RECORDED_STEP = 2


class StepPeak:
    """The most bytes of tensors in one recorded step; ``None`` before it was recorded."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.nbytes: int | None = None
        self._wanted = min(RECORDED_STEP, steps) if device.type == "cpu" else 0
        self._step = 0

    @contextmanager
    def watching(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """One more step of this process."""
        self._step += 1
        if self._step != self._wanted:
            yield
            return
        held = held_bytes([*stored_tensors(model), *state_tensors(optimizer)])
        done = False
        try:
            with record_allocator() as trace:
                yield
                done = True
        except EnvironmentUnavailableError:  # a torch that tells nothing: the step itself is done
            if not done:
                raise
            return
        self.nbytes = held + max(accumulate(event.nbytes for event in trace.events), default=0)


def held_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind some tensors, shared ones once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
