"""The device that a recipe names, if it is there, and what its allocator tells of itself."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.recipe.schema import Device as DeviceSection
from mem_gpt_cli.report import DeviceSummary

_CPUINFO = Path("/proc/cpuinfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class AllocatorPeak:
    """What the device's caching allocator says of a stretch of the run; ``None`` where it keeps no count."""

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclass(frozen=True)
class Device:
    """Where the workload runs."""

    torch_device: torch.device
    summary: DeviceSummary

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU with torch's caching allocator."""
        return self.torch_device.type == "cuda"

    def synchronise(self) -> None:
        """Wait until everything that was launched is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch_device)

    def reset_peak(self) -> None:
        """Begin a new stretch of the allocator's account."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak(self) -> AllocatorPeak:
        """The allocator's peaks since ``reset_peak``."""
        if not self.is_cuda:
            return AllocatorPeak()
        return AllocatorPeak(
            torch.cuda.max_memory_allocated(self.torch_device),
            torch.cuda.max_memory_reserved(self.torch_device),
        )

    def release(self) -> None:
        """Give cached memory back to the driver."""
        if self.is_cuda:
            torch.cuda.empty_cache()


def find_device(section: DeviceSection) -> Device:
    """The device of a recipe.

    Raises:
        EnvironmentUnavailableError: if this machine does not have it.
    """
    if section.type == "cpu":
        return Device(torch.device("cpu"), DeviceSummary("cpu", _cpu_name(), _cpu_bytes()))
    index = _cuda_index(section.name)
    properties = torch.cuda.get_device_properties(index)
    summary = DeviceSummary("cuda", properties.name, properties.total_memory)
    return Device(torch.device("cuda", index), summary)


def _cuda_index(name: str) -> int:
    if not torch.cuda.is_available():
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "torch finds no GPU here"
        raise EnvironmentUnavailableError(
            f"device.name: {name!r} cannot be used, because {why}: "
            "use device=cpu, or `memgpt estimate --trace` for a prediction"
        )
    count = torch.cuda.device_count()
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index < count:
        return index
    raise EnvironmentUnavailableError(
        f"device.name: there is no {name!r}: this machine has {count} GPU(s), counted from cuda:0"
    )


def _cpu_name() -> str:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine() or "cpu"


def _cpu_bytes() -> int | None:
    """Physical memory, or the container's share of it where that is less."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    try:
        return min(physical, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroup here, or "max"
        return physical
