"""What a process still holds of its GPU between two cells, given back.

A cell that begins with cached blocks would reserve less than one in a fresh process, and cuBLAS keeps its
workspaces, allocated once a handle and stream, for the life of the process (``getCUDABlasLtWorkspace`` and
``clearCublasWorkspaces`` of ATen's ``CUDABlas``/``CublasHandlePool.cpp``).
"""

from __future__ import annotations

import gc
import sys
from typing import NamedTuple


class HeldBytes(NamedTuple):
    """What torch's CUDA allocator counts."""

    allocated: int
    reserved: int


def given_back() -> HeldBytes | None:
    """Free what nobody refers to and every cached block; what is held all the same, ``None`` without CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    return HeldBytes(torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
