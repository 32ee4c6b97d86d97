"""The inner buffers of CUDA's kernels, by rule: see ``attention_kernels``, ``kernels`` and ``blas``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.ledger import EventLog

RULES: dict[Any, Any] = {}


class CudaKernels:
    """What the kernels of one GPU take beside their results."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def __call__(
        self, log: EventLog, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Sequence[int]:
        """See ``KernelBuffers``."""
        rule = RULES.get(func)
        if rule is None:
            return ()
        return [log.storage(nbytes, "workspace") for nbytes in rule(self.gpu, args, kwargs, result) if nbytes]
