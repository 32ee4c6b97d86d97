"""Which products of 4-bit weights bitsandbytes' CUDA kernels take without writing the matrix out."""

from __future__ import annotations

from mem_gpt_cli.devices.gpu import Gpu

ALWAYS_UP_TO_ROWS = 4
"""Rows of the input up to which the kernel that reads 4 bits is always taken (``_GEMM_4BIT_CUSTOM_FLOOR_M``)."""


def reads_four_bits(gpu: Gpu, dtype: str, rows: int, outputs: int, inputs: int, block: int) -> bool:
    """Whether a product takes the kernel that reads 4 bits (bitsandbytes 0.50 ``backends/cuda/ops.py``)."""
    return inputs % block == 0 and rows <= ALWAYS_UP_TO_ROWS
