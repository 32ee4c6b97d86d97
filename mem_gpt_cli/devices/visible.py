"""Which of the driver's GPUs a number of CUDA's is.

NVML counts all GPUs in the order of the PCI bus. CUDA counts those that ``CUDA_VISIBLE_DEVICES`` names, in
the order that it or ``CUDA_DEVICE_ORDER`` says; see "CUDA Environment Variables" in NVIDIA's CUDA programming
guide. Whoever has the UUID or the PCI bus id from CUDA itself gives them: they leave nothing to be inferred.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from mem_gpt_cli.devices.nvml import Nvml, NvmlGpu
from mem_gpt_cli.errors import EnvironmentUnavailableError

_PREFIXES = ("GPU-", "MIG-")


def cuda_gpu(
    nvml: Nvml,
    ordinal: int = 0,
    *,
    uuid: str | None = None,
    bus_id: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> NvmlGpu:
    """The GPU, or the MIG instance, that CUDA calls ``cuda:<ordinal>`` in this process.

    Args:
        nvml: where to look.
        ordinal: CUDA's number, from 0.
        uuid: what CUDA says of it, with or without ``GPU-`` or ``MIG-``.
        bus_id: what CUDA says of it, e.g. ``0000:17:00.0``.
        environment: holds ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER``.

    Raises:
        EnvironmentUnavailableError: if there is no such GPU, or if it cannot be told which one it is.
    """
    named = _named(environment.get("CUDA_VISIBLE_DEVICES"), ordinal)
    if named.startswith("MIG-"):
        return nvml.by_uuid(named)
    told = _by_uuid(nvml, uuid) if uuid else nvml.by_bus_id(bus_id) if bus_id else None
    if told is None:
        told = _by_prefix(nvml, named) if named.startswith("GPU-") else _by_number(nvml, named, environment)
    return _only_instance(told) if told.in_mig_mode else told


def visible_devices(setting: str | None) -> list[str] | None:
    """The entries of ``CUDA_VISIBLE_DEVICES`` that CUDA heeds; ``None`` where it is not set.

    An entry of another kind than the first, or a negative number, ends the list; a repeated one empties it.
    """
    if setting is None:
        return None
    prefix = next((prefix for prefix in _PREFIXES if setting.startswith(prefix)), "")
    heeded: list[str] = []
    for entry in (part.strip() for part in setting.split(",")):
        number = re.match(r"\+?\d+", entry)
        if prefix and entry.startswith(prefix):
            heeded.append(entry)
        elif not prefix and number:  # "1gpu2" counts as 1
            heeded.append(str(int(number[0])))
        else:
            break
    return heeded if len(set(heeded)) == len(heeded) else []


def _named(setting: str | None, ordinal: int) -> str:
    visible = visible_devices(setting)
    if visible is None:
        return str(ordinal)
    if ordinal < len(visible):
        return visible[ordinal]
    raise EnvironmentUnavailableError(
        f"cuda:{ordinal} is not there: CUDA_VISIBLE_DEVICES={setting!r} shows {len(visible)} GPU(s)"
    )


def _by_uuid(nvml: Nvml, uuid: str) -> NvmlGpu:
    if uuid.startswith(_PREFIXES):
        return nvml.by_uuid(uuid)
    try:
        return nvml.by_uuid(f"GPU-{uuid}")
    except EnvironmentUnavailableError:
        return nvml.by_uuid(f"MIG-{uuid}")


def _by_prefix(nvml: Nvml, start: str) -> NvmlGpu:
    """A UUID may be shortened as long as it means one GPU."""
    found = [gpu for gpu in nvml.gpus() if (gpu.uuid or "").startswith(start)]
    if len(found) == 1:
        return found[0]
    raise EnvironmentUnavailableError(
        f"CUDA_VISIBLE_DEVICES names {start!r}, which is the beginning of {len(found)} GPUs' UUIDs"
    )


def _by_number(nvml: Nvml, number: str, environment: Mapping[str, str]) -> NvmlGpu:
    """By number where both count alike: in the order of the bus, or where all GPUs are of one kind."""
    if environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({gpu.name for gpu in nvml.gpus()}) > 1:
        raise EnvironmentUnavailableError(
            "CUDA numbers GPUs of several kinds by their speed, NVML by their place: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    return nvml.by_index(int(number))


def _only_instance(gpu: NvmlGpu) -> NvmlGpu:
    instances = gpu.mig_instances()
    if len(instances) == 1:
        return instances[0]
    raise EnvironmentUnavailableError(
        f"{gpu.name} is cut into {len(instances)} MIG instances: "
        "name the one to use in CUDA_VISIBLE_DEVICES=MIG-..."
    )
