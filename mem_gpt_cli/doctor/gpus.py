"""The GPUs of this machine as the driver tells of them, and what memgpt knows of each."""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.devices.calibration import calibration_of
from mem_gpt_cli.devices.catalogue import gpu_of_product
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.nvml import Nvml, NvmlGpu
from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError

LOOK = f"{__name__}:look"
"""For ``attempt``: NVML is a library in C, and may take a process down with it."""


def look() -> dict[str, Any]:
    """The driver's version and every GPU, MIG instances after the GPU that they are a part of.

    Raises:
        EnvironmentUnavailableError: if NVML cannot be used.
    """
    with Nvml() as nvml:
        gpus = [row for index in range(nvml.count) for row in _rows(nvml, index)]
        count = f"{nvml.count} GPU" + ("" if nvml.count == 1 else "s")
        return {
            "detail": f"driver {nvml.driver_version or 'unknown'}, {count}",
            "driver": nvml.driver_version,
            "gpus": gpus,
        }


def _rows(nvml: Nvml, index: int) -> list[dict[str, Any]]:
    """A GPU and its instances; one that is lost or may not be read is a row with the reason."""
    try:
        gpu = nvml.by_index(index)
        return [_row(each, index) for each in (gpu, *gpu.mig_instances())]
    except EnvironmentUnavailableError as unreadable:
        return [{"index": index, "problem": str(unreadable)}]


def _row(gpu: NvmlGpu, index: int) -> dict[str, Any]:
    total, used = gpu.total(), gpu.memory()
    total_bytes = None if total.value is None else int(total.value)
    known = gpu_of_product(gpu.name, total_bytes)
    calibrated, unreadable = _calibrated(known)
    return {
        "index": index,
        "product": gpu.name,
        "uuid": gpu.uuid,
        "known_as": known.name if known else None,
        "calibrated": calibrated,
        "capability": ".".join(map(str, gpu.capability)) if gpu.capability else None,
        "total_bytes": total_bytes,
        "free_bytes": None if total_bytes is None or used.value is None else total_bytes - int(used.value),
        "mig": "instance" if gpu.is_mig else "on" if gpu.in_mig_mode else "off",
        "problem": total.why_not or used.why_not or unreadable,
    }


def _calibrated(known: Gpu | None) -> tuple[bool, str | None]:
    """Whether there is a calibration, and why none can be read."""
    try:
        return known is not None and calibration_of(known) is not None, None
    except UsageError as error:
        return False, str(error)
