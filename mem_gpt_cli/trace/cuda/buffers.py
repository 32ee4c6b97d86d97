"""What CUDA's kernels and libraries take beside their results, by the rules of the modules here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.ledger import EventLog
from mem_gpt_cli.trace.cuda import attention_kernels, kernels
from mem_gpt_cli.trace.cuda.blas import BlasWorkspaces

RULES = attention_kernels.RULES | kernels.RULES
"""For each operator the bytes of the buffers that its kernel allocates and frees, in order of allocation."""


class CudaKernels:
    """What the kernels of one GPU take; cuBLAS's workspaces stay once they are there."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._blas = BlasWorkspaces(gpu)

    def __call__(
        self, log: EventLog, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Sequence[int]:
        """See ``KernelBuffers``."""
        buffers = self._blas(func, args, kwargs, result, in_backward())
        for nbytes in buffers.lasting:
            log.birth(log.storage(nbytes, "workspace"))
        rule = RULES.get(func)
        own = rule(self.gpu, args, kwargs, result) if rule else ()
        return [log.storage(nbytes, "workspace") for nbytes in (*buffers.transient, *own) if nbytes]


def in_backward() -> bool:
    """Whether autograd is running, which on CUDA it does in a thread of its own."""
    return torch._C._current_graph_task_id() != -1
