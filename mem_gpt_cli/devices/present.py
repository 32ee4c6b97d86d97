"""The GPU that is in this machine, as far as somebody can be asked."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mem_gpt_cli.devices.catalogue import gpu_of_product
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.nvml import Nvml, NvmlGpu
from mem_gpt_cli.errors import EnvironmentUnavailableError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ORDER = "CUDA_DEVICE_ORDER"


def gpu_present(index: int = 0, *, nvml_library: Any = None) -> Gpu | None:
    """The GPU that CUDA numbers ``index``, or ``None`` where there is none or nobody can tell.

    NVML is asked first, because it takes no memory of the GPU; torch, if the process has imported it, knows
    also GPUs that the catalogue does not. ``nvml_library`` stands in for the module ``pynvml``.
    """
    with suppress(EnvironmentUnavailableError), Nvml(nvml_library) as nvml:
        if found := _by_nvml(nvml, index):
            return found
    return _by_torch(index)


def cuda_gpu(nvml: Nvml, index: int) -> NvmlGpu | None:
    """NVML's view of the GPU that CUDA numbers ``index``; ``None`` where their orders cannot be matched.

    CUDA counts the GPUs of ``CUDA_VISIBLE_DEVICES``, by number or UUID, and without ``CUDA_DEVICE_ORDER``
    sorts unlike ones by speed, where NVML sorts by the bus (CUDA programming guide, "CUDA Environment
    Variables").
    """
    whole = nvml.gpus()
    chosen = os.environ.get(_VISIBLE, ",".join(map(str, range(len(whole))))).split(",")
    word = chosen[index].strip() if index < len(chosen) else ""
    if word.isdigit():
        ordered = os.environ.get(_ORDER) == "PCI_BUS_ID" or len({gpu.name for gpu in whole}) == 1
        return whole[int(word)] if ordered and int(word) < len(whole) else None
    if word.startswith("MIG-"):
        return nvml.by_uuid(word)
    alike = [gpu for gpu in whole if word and gpu.uuid and gpu.uuid.startswith(word)]
    return alike[0] if len(alike) == 1 else None


def _by_nvml(nvml: Nvml, index: int) -> Gpu | None:
    gpu = cuda_gpu(nvml, index)
    if gpu is None or gpu.in_mig_mode:
        return None
    total = gpu.total().value
    total_bytes = None if total is None else int(total)
    known = gpu_of_product(gpu.name, total_bytes)
    if known is None or total_bytes is None:
        return known
    return replace(known, total_bytes=total_bytes, total_is_nominal=False)


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
