"""What a process still holds of its GPU between two cells, given back.

A cell that begins with cached blocks, or with cuBLAS's workspaces, would reserve otherwise than one in a
fresh process.
"""

from __future__ import annotations

import gc
import sys
from typing import NamedTuple

from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.recipe.schema import Device


class HeldBytes(NamedTuple):
    """What torch's CUDA allocator counts."""

    allocated: int
    reserved: int


def given_back(device: Device) -> HeldBytes | None:
    """Free what nobody refers to and every cached block; what that device holds all the same.

    ``None`` where nothing tells: without CUDA, and where the device is no GPU of this machine.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    from mem_gpt_cli.profile.device import cuda_index, empty_allocator

    gc.collect()
    empty_allocator()
    if device.type != "cuda":
        return None
    try:
        index = cuda_index(device.name)
    except MemgptError:  # the profile says so itself
        return None
    return HeldBytes(torch.cuda.memory_allocated(index), torch.cuda.memory_reserved(index))
