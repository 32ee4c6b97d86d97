"""What CUDA's kernels and libraries take beside their results, by the rules of the modules here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.ledger import EventLog
from mem_gpt_cli.trace.cuda import attention_kernels, bitsandbytes_kernels, kernels
from mem_gpt_cli.trace.cuda.blas import BlasWorkspaces
from mem_gpt_cli.trace.quantized_kernels import inner_product

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
        if func.namespace == "bitsandbytes":
            return self._of_bitsandbytes(log, func, args, kwargs, result)
        buffers = self._blas(func, args, kwargs, result, in_backward())
        for nbytes in buffers.lasting:
            log.birth(log.storage(nbytes, "workspace"))
        rule = RULES.get(func)
        own = rule(self.gpu, args, kwargs, result) if rule else ()
        return [log.storage(nbytes, "workspace") for nbytes in (*buffers.transient, *own) if nbytes]

    def _of_bitsandbytes(
        self, log: EventLog, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Sequence[int]:
        """By rule; and cuBLAS's workspaces, where a product of torch's own is inside."""
        rule = bitsandbytes_kernels.RULES.get(func._opname)
        sizes = rule(self.gpu, args, kwargs, result) if rule else ()
        product = inner_product(func, args, kwargs)
        if product is not None and not bitsandbytes_kernels.fused(self.gpu, args):
            inner, operands = product
            buffers = self._blas(inner, operands, {}, result.flatten(0, -2), in_backward())
            for nbytes in buffers.lasting:
                log.birth(log.storage(nbytes, "workspace"))
        return [log.storage(nbytes, "workspace") for nbytes in sizes if nbytes]


def in_backward() -> bool:
    """Whether autograd is running, which on CUDA it does in a thread of its own."""
    return torch._C._current_graph_task_id() != -1
