"""The workspaces that torch gives to cuBLAS and cuBLASLt.

Source: ATen/cuda/CublasHandlePool.cpp.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from mem_gpt_cli.devices.gpu import Gpu

_TRUE = ("1", "ON", "YES", "TRUE", "Y")


def workspace_bytes(gpu: Gpu, environment: Mapping[str, str] = os.environ) -> int:
    """cuBLAS's workspace: 32 MiB on Hopper, 8,519,680 B elsewhere; ``CUBLAS_WORKSPACE_CONFIG`` overrides.

    Source: ``parseChosenWorkspaceSize`` in ATen/cuda/CublasHandlePool.cpp.
    """
    configured = re.findall(r":([0-9]+):([0-9]+)", environment.get("CUBLAS_WORKSPACE_CONFIG", ""))
    if configured:
        return sum(int(kib) * 1024 * int(count) for kib, count in configured)
    return 4096 * 8 * 1024 if gpu.capability == (9, 0) else 4096 * 1024 * 2 + 16 * 1024 * 8


def lt_workspace_bytes(environment: Mapping[str, str] = os.environ) -> int | None:
    """cuBLASLt's own workspace: 1 MiB or ``CUBLASLT_WORKSPACE_SIZE`` KiB; ``None`` where it shares cuBLAS's.

    It shares only if ``TORCH_CUBLASLT_UNIFIED_WORKSPACE`` says so. Source: ``parseCUDABlasLtWorkspaceSize``
    and ``getCUDABlasLtWorkspace`` in ATen/cuda/CublasHandlePool.cpp.
    """
    if environment.get("TORCH_CUBLASLT_UNIFIED_WORKSPACE", "").upper() in _TRUE:
        return None
    size = environment.get("CUBLASLT_WORKSPACE_SIZE", "")
    return (int(size) if size.isdigit() else 1024) * 1024
