"""The GPU that is in this machine, as far as somebody can be asked."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from mem_gpt_cli.devices.catalogue import gpu_of_product
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.nvml import Nvml
from mem_gpt_cli.devices.visible import cuda_gpu
from mem_gpt_cli.errors import EnvironmentUnavailableError

NONE_HERE = "none is here"


def gpu_present(index: int = 0, *, nvml_library: Any = None) -> Gpu:
    """The GPU that CUDA numbers ``index``.

    NVML is asked first, because it takes no memory of the GPU; torch, if the process has imported it, knows
    also GPUs that the catalogue does not. ``nvml_library`` stands in for the module ``pynvml``.

    Raises:
        EnvironmentUnavailableError: there is none, or it cannot be told which it is or what it is like.
    """
    found = _by_nvml(index, nvml_library)
    if isinstance(found, Gpu):
        return found
    if known := _by_torch(index):
        return known
    raise EnvironmentUnavailableError(found)


def _by_nvml(index: int, library: Any) -> Gpu | str:
    """The GPU, or why NVML does not say which; without NVML, or a GPU that it shows, there is none."""
    try:
        nvml = Nvml(library)
    except EnvironmentUnavailableError:
        return NONE_HERE
    with nvml:
        try:
            if nvml.count == 0:
                return NONE_HERE
            gpu = cuda_gpu(nvml, index)
            total, product = gpu.total().value, gpu.name
        except EnvironmentUnavailableError as error:
            return f"this machine's cannot be told ({error})"
    known = gpu_of_product(product, None if total is None else int(total))
    if known is None:
        return f"this machine's {product} is not in the catalogue"
    return known if total is None else replace(known, total_bytes=int(total), total_is_nominal=False)


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
