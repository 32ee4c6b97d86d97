"""Several processes that train one model: accelerate's launcher starts them, each has a share of every step.

Gradients are averaged once a step, when all micro-batches are through, before they are clipped: the step is
the one that a single process takes with as many more micro-batches. The model is not wrapped, so every loss,
adapter and way of checkpointing works as it does alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mem_gpt_cli.errors import MissingExtraError, UsageError

_OTHER_PLANS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


@dataclass(frozen=True)
class Processes:
    """The processes of a run and which of them this is; one alone where nobody launched more."""

    count: int = 1
    rank: int = 0
    local_rank: int = 0

    @classmethod
    def join(cls, *, cpu: bool) -> Processes:
        """Meet the processes that accelerate's launcher started; without one there is this one alone.

        Args:
            cpu: they train on the CPU, and not each on a GPU of its own.

        Raises:
            UsageError: where the launcher was told to shard the model.
            MissingExtraError: without accelerate.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        for variable, name in _OTHER_PLANS.items():
            if os.environ.get(variable, "false").lower() in ("1", "true"):
                raise UsageError(
                    f"accelerate was told to use {name}, and memgpt trains whole copies of the model side by "
                    "side: launch it with --multi_gpu alone"
                )
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise MissingExtraError("accelerate", "training", "training in several processes") from error
        state: Any = PartialState(cpu=cpu)
        return cls(state.num_processes, state.process_index, state.local_process_index)

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every process the mean of all processes' gradients; one that has none counts as zeros."""
        if self.count == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        if not trained:
            return
        there = torch.tensor([p.grad is not None for p in trained], device=trained[0].device).int()
        torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MAX)
        for parameter, anywhere in zip(trained, there.tolist(), strict=True):
            if anywhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.count

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of all processes' values."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
            values = values / self.count
        return values

    def gather(self, value: Any) -> list[Any]:
        """Each process's value in the order of their ranks."""
        found: list[Any] = [value]
        if self.count > 1:
            found = [None] * self.count
            torch.distributed.all_gather_object(found, value)
        return found
