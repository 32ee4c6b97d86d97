"""What the prediction of a GPU's memory depends on: a few facts of the chip."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU by its facts.

    Args:
        name: the name that a recipe writes, e.g. ``h100``.
        product: what the driver calls it, e.g. ``NVIDIA H100 80GB HBM3``.
        capability: CUDA compute capability, ``(major, minor)``; it decides which kernels run.
        multiprocessors: streaming multiprocessors; some kernels' buffers grow with them.
        total_bytes: what the driver reports as the GPU's memory.
        total_is_nominal: ``total_bytes`` is the data sheet's figure: no driver report is known.
        unified_memory: the GPU has no memory of its own, but shares the system's.
    """

    name: str
    product: str
    capability: tuple[int, int]
    multiprocessors: int
    total_bytes: int
    total_is_nominal: bool = False
    unified_memory: bool = False
