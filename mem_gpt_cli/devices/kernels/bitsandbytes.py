"""Which of its ways bitsandbytes takes for a product, by the facts of the processor or the GPU.

Sources: bitsandbytes 0.50 ``backends/cpu/ops.py`` and ``backends/cuda/ops.py``; a test holds the rules of a
GPU against the installed package's own, shape by shape.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from mem_gpt_cli.devices.gpu import Gpu

_CPUINFO = Path("/proc/cpuinfo")
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"})

_FUSED_UP_TO = 4
_WRITTEN_OUT_FROM = 1536
_SMALL = 4 * 1024 * 1024
"""Rows up to which, and above which, all GPUs are alike; weights below which a matrix counts as small."""


@cache
def multiplies_integers() -> bool:
    """Whether int8 is multiplied as it is, as on a processor with AVX-512, and not as fp32 copies.

    That is where torch reports the capability ``AVX512`` (aten/src/ATen/native/DispatchStub.cpp).
    """
    wanted = os.environ.get("ATEN_CPU_CAPABILITY")
    if wanted in ("default", "avx2", "avx512"):
        return wanted == "avx512"
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return set(flags) >= _AVX512


def reads_four_bits(gpu: Gpu, dtype: str, rows: int, outputs: int, inputs: int, block: int) -> bool:
    """Whether a product takes the kernel that reads 4 bits; else the matrix is written out first.

    Then torch's own product follows (ATen/native/Linear.cpp).

    Args:
        gpu: where it runs.
        dtype: the input's, by its name in a recipe.
        rows: of the input.
        outputs: rows of the matrix.
        inputs: columns of the matrix.
        block: weights that share a maximum.
    """
    if rows > _WRITTEN_OUT_FROM or inputs % block:
        return False
    if rows <= _FUSED_UP_TO:
        return True
    major, minor = gpu.capability
    if dtype == "fp32" or major < 7 or (major == 7 and (minor < 5 or dtype != "fp16")):
        return rows < 8
    if gpu.capability == (8, 7) or major == 11:
        return False
    blocks = -(-outputs // 64)
    if major == 10:
        return rows <= _limit_of_sm100(gpu.multiprocessors, blocks, outputs, inputs)
    if outputs * inputs < _SMALL:
        return rows <= _limit_of_small(gpu, blocks, outputs, inputs, rows)
    if rows < 8:
        return not _under_subscribed(gpu, blocks, outputs, inputs, rows)
    return rows <= min(512, _limit(gpu, blocks, outputs, inputs))


def _limit_of_sm100(processors: int, blocks: int, outputs: int, inputs: int) -> int:
    if blocks >= processors * 3:
        return 32
    return 8 if blocks >= processors and inputs < outputs else 0


def _limit_of_small(gpu: Gpu, blocks: int, outputs: int, inputs: int, rows: int) -> int:
    """Rows up to which a small matrix is read in 4 bits."""
    processors, capability = gpu.multiprocessors, gpu.capability
    wide = capability == (8, 0) or capability[0] == 9
    if inputs * 2 < outputs:
        return _limit_of_short(gpu, blocks, inputs)
    quarter = blocks * 4 <= processors
    if capability == (8, 0) and quarter:
        if inputs >= outputs:
            return 32 if blocks * 8 <= processors else 128
        return 384
    if capability == (7, 5) and blocks < processors and rows > 8:
        return 64
    if quarter:
        return 32 if inputs < outputs or wide else 23
    return 16 if blocks * 2 <= processors else 0


def _limit_of_short(gpu: Gpu, blocks: int, inputs: int) -> int:
    """A small matrix with more than twice as many outputs as inputs."""
    processors, capability = gpu.multiprocessors, gpu.capability
    if capability == (8, 0):
        return 1536 if blocks * 3 < processors else 512
    if capability[0] == 9:
        return 512 if blocks * 3 < processors else 320
    if capability == (7, 5):
        if blocks >= processors * 3 or inputs < 704:
            return 320
        return 64 if inputs >= 1024 else 96
    crowded = blocks < processors and blocks * inputs > processors * 320
    return 192 if crowded else 320


def _under_subscribed(gpu: Gpu, blocks: int, outputs: int, inputs: int, rows: int) -> bool:
    """Whether 6 or 7 rows leave too many processors idle on a GPU with HBM."""
    hopper, ampere = gpu.capability[0] == 9, gpu.capability == (8, 0)
    if not (hopper or ampere) or rows < 6 or blocks < (36 if hopper else 48):
        return False
    below_75 = blocks * 4 < gpu.multiprocessors * 3
    below_60 = blocks * 5 < gpu.multiprocessors * 3
    if inputs > outputs:
        return below_75
    return inputs == outputs and ((ampere and below_60) or (hopper and below_75 and not below_60))


def _limit(gpu: Gpu, blocks: int, outputs: int, inputs: int) -> int:
    """Rows up to which a large matrix is read in 4 bits, by the GPU's generation."""
    waves, capability = blocks / gpu.multiprocessors, gpu.capability
    half = blocks >= gpu.multiprocessors // 2
    if capability == (7, 5):
        return (128 if inputs < outputs else 64) if waves >= 3 else 64 if half else 32
    if capability == (8, 0):
        return _limit_of_sm80(gpu.multiprocessors, blocks, outputs, inputs)
    if capability == (8, 6):
        return 128 if waves >= 1 else 64 if half else 16
    if capability[0] == 9:
        for least, rows in ((3, 64), (2, 48), (1, 32)):
            if waves >= least:
                return rows
        return 16 if half and not (inputs >= outputs and waves < 0.75) else 0
    if capability == (12, 1) and waves >= 1:
        return 256
    if capability == (12, 0):
        return _limit_of_sm120(waves, blocks, outputs, inputs, half=half)
    return _limit_of_sm89(gpu.multiprocessors, blocks, outputs, inputs)


def _limit_of_sm80(processors: int, blocks: int, outputs: int, inputs: int) -> int:
    if blocks >= processors * 3:
        return 128
    if blocks >= processors:
        return 64 if inputs < outputs else 32
    if inputs >= outputs * 3 and blocks * 4 > processors:
        return 0
    if inputs == outputs and blocks >= 48 and blocks * 5 < processors * 3:
        return 0
    if blocks * 2 < processors:
        if inputs <= outputs:
            return 128
        if blocks * 3 >= processors:
            return 0
    return 128 if blocks >= processors // 2 and inputs < outputs else 16


def _limit_of_sm120(waves: float, blocks: int, outputs: int, inputs: int, *, half: bool) -> int:
    for least, rows in ((3, 256), (2, 128)):
        if waves >= least:
            return rows
    if waves >= 0.8:
        return 96 if inputs >= outputs else 64
    if half:
        return 64 if inputs * 2 >= outputs and blocks >= 128 else 8
    return 16 if inputs > outputs * 2 and blocks > 64 else 8


def _limit_of_sm89(processors: int, blocks: int, outputs: int, inputs: int) -> int:
    """Ada, and every generation without rules of its own."""
    tall = inputs > outputs * 2
    for least, rows in ((3, 256), (2, 128)):
        if blocks >= processors * least:
            return rows
    if blocks * 5 >= processors * 4:
        if tall or blocks >= 200:
            return 128
        return (128 if processors >= 60 else 32) if inputs >= outputs else 64
    if blocks >= processors // 2:
        return 64 if tall else 8 if blocks >= 64 else 32
    if inputs > outputs and blocks <= 48:
        return 12 if inputs >= outputs * 3 else 10
    return 16 if tall or blocks < 48 else 8
