"""The GPU that is in this machine, as far as somebody can be asked."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mem_gpt_cli.devices.catalogue import gpu_of_product
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.nvml import Nvml
from mem_gpt_cli.devices.visible import cuda_gpu
from mem_gpt_cli.errors import EnvironmentUnavailableError


def gpu_present(index: int = 0, *, nvml_library: Any = None) -> Gpu | None:
    """The GPU that CUDA numbers ``index``, or ``None`` where there is none or nobody can tell.

    NVML is asked first, because it takes no memory of the GPU; torch, if the process has imported it, knows
    also GPUs that the catalogue does not. ``nvml_library`` stands in for the module ``pynvml``.
    """
    with suppress(EnvironmentUnavailableError), Nvml(nvml_library) as nvml:
        if found := _by_nvml(nvml, index):
            return found
    return _by_torch(index)


def _by_nvml(nvml: Nvml, index: int) -> Gpu | None:
    gpu = cuda_gpu(nvml, index)
    total = gpu.total().value
    if total is None:
        return gpu_of_product(gpu.name)
    known = gpu_of_product(gpu.name, int(total))
    return known and replace(known, total_bytes=int(total), total_is_nominal=False)


def _by_torch(index: int) -> Gpu | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    facts = torch.cuda.get_device_properties(index)
    known = gpu_of_product(facts.name, facts.total_memory)
    return known or Gpu(
        name=f"cuda:{index}",
        product=facts.name,
        capability=(facts.major, facts.minor),
        multiprocessors=facts.multi_processor_count,
        total_bytes=facts.total_memory,
        unified_memory=bool(facts.is_integrated),
    )
