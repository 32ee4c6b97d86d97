"""The GPU that is in this machine, as far as somebody can be asked."""

from __future__ import annotations

import sys

from mem_gpt_cli.devices.catalogue import gpu_of_product
from mem_gpt_cli.devices.gpu import Gpu


def gpu_present(index: int = 0) -> Gpu | None:
    """The GPU that CUDA numbers ``index``, or ``None`` where there is none or nobody tells."""
    return _by_torch(index)


def _by_torch(index: int) -> Gpu | None:
    """What torch says, if the process has imported it already; importing it takes seconds."""
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
