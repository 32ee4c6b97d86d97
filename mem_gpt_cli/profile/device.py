"""The device that a recipe names, if it is there, and what its allocator tells of itself."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from mem_gpt_cli.devices.catalogue import find_gpu, gpu_of_product
from mem_gpt_cli.devices.nvml import Nvml, NvmlGpu, Reading
from mem_gpt_cli.devices.visible import cuda_gpu
from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError
from mem_gpt_cli.recipe.schema import Device as DeviceSection
from mem_gpt_cli.report import DeviceSummary

_CPUINFO = Path("/proc/cpuinfo")
_UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_DRY_RUN = "`memgpt estimate --trace`"


@dataclass(frozen=True)
class Device:
    """Where the workload runs: here the CPU, whose allocator keeps no count and launches nothing ahead."""

    torch_device: torch.device
    summary: DeviceSummary

    def synchronise(self) -> None:
        """Wait until everything that was launched is done."""

    def release(self) -> None:
        """Give cached memory back, so that the next run finds the allocator as a fresh process does."""


@dataclass(frozen=True)
class AllocatorCount:
    """What torch's CUDA allocator counts, in bytes: its peaks since they were reset, and what it holds now.

    ``requested_bytes`` is ``allocated_bytes`` before rounding; ``retries`` counts how often it gave all
    cached blocks back because the GPU was full.
    """

    allocated_bytes: int
    requested_bytes: int
    reserved_bytes: int
    reserved_now_bytes: int
    retries: int


@dataclass(frozen=True)
class CudaDevice(Device):
    """A GPU with torch's caching allocator; ``index`` is CUDA's number of it."""

    index: int

    def synchronise(self) -> None:
        """Wait until every kernel that was launched is done."""
        torch.cuda.synchronize(self.index)

    def release(self) -> None:
        """Give cuBLAS's workspaces and all cached blocks back to the driver."""
        empty_allocator()

    def reset_peaks(self) -> None:
        """Begin a new stretch of the allocator's peaks."""
        torch.cuda.reset_peak_memory_stats(self.index)

    def reset_counters(self) -> None:
        """Begin a new count of retries."""
        torch.cuda.reset_accumulated_memory_stats(self.index)

    def count(self) -> AllocatorCount:
        """What the allocator counts; see ``torch.cuda.memory_stats`` for the names."""
        stats = torch.cuda.memory_stats(self.index)
        return AllocatorCount(
            allocated_bytes=stats["allocated_bytes.all.peak"],
            requested_bytes=stats["requested_bytes.all.peak"],
            reserved_bytes=stats["reserved_bytes.all.peak"],
            reserved_now_bytes=stats["reserved_bytes.all.current"],
            retries=stats["num_alloc_retries"],
        )

    def in_use(self) -> Reading:
        """Bytes in use as CUDA itself tells, for a GPU of which NVML does not tell."""
        free, total = torch.cuda.mem_get_info(self.index)
        return Reading(total - free, "torch.cuda.mem_get_info, which counts the driver's own reserve as used")

    def driver_view(self, nvml: Nvml) -> NvmlGpu:
        """The same GPU, or MIG instance, as NVML knows it.

        Raises:
            EnvironmentUnavailableError: if NVML does not have it.
        """
        uuid = str(torch.cuda.get_device_properties(self.index).uuid)
        return cuda_gpu(nvml, self.index, uuid=uuid)


def empty_allocator() -> None:
    """Give cuBLAS's workspaces and all cached blocks of every GPU back to the driver.

    cuBLAS keeps its workspaces, allocated once a handle and stream, for the life of the process
    (``getCUDABlasLtWorkspace`` of ATen's ``CUDABlas.cpp``, ``clearCublasWorkspaces`` of its
    ``CublasHandlePool.cpp``).
    """
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def find_device(section: DeviceSection, *, dry_run: str = _DRY_RUN) -> Device:
    """The device of a recipe; a GPU's allocator gets the recipe's settings.

    Args:
        section: the recipe's.
        dry_run: what predicts for a GPU that is not there, for the sentence that says so.

    Raises:
        EnvironmentUnavailableError: if this machine does not have it.
        UsageError: for a GPU's name that nobody knows, or settings that the allocator does not take.
    """
    if section.type == "cpu":
        return Device(torch.device("cpu"), DeviceSummary("cpu", _cpu_name(), _cpu_bytes()))
    index = cuda_index(section.name, dry_run=dry_run)
    _refuse_allocators_that_do_not_count()
    properties = torch.cuda.get_device_properties(index)
    if section.allocator is not None:
        _set_allocator(section.allocator)
    summary = DeviceSummary("cuda", properties.name, properties.total_memory)
    return CudaDevice(torch.device("cuda", index), summary, index)


def cuda_index(name: str, *, dry_run: str = _DRY_RUN) -> int:
    """CUDA's number of the GPU that a recipe's ``device.name`` means; ``dry_run`` as in ``find_device``.

    Raises:
        EnvironmentUnavailableError: if this machine does not have it.
        UsageError: for a GPU's name that nobody knows.
    """
    is_number = name.partition(":")[0] == "cuda"
    wanted = None if is_number else find_gpu(name)
    if not torch.cuda.is_available():
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "torch finds no GPU here"
        raise EnvironmentUnavailableError(
            f"device.name: {name!r} cannot be used, because {why}: "
            f"use device=cpu, or {dry_run} for a prediction"
        )
    count = torch.cuda.device_count()
    if is_number:
        index = int(name.partition(":")[2] or torch.cuda.current_device())
        if index < count:
            return index
        raise EnvironmentUnavailableError(
            f"device.name: there is no {name!r}: this machine has {count} GPU(s), counted from cuda:0"
        )
    there = [torch.cuda.get_device_properties(index) for index in range(count)]
    for index, properties in enumerate(there):
        if gpu_of_product(properties.name, properties.total_memory) == wanted:
            return index
    names = ", ".join(f"cuda:{index} is {properties.name}" for index, properties in enumerate(there))
    raise EnvironmentUnavailableError(f"device.name: there is no {name!r} here: {names}")


def _refuse_allocators_that_do_not_count() -> None:
    """Only the caching allocator counts what is allocated and reserved.

    With ``PYTORCH_NO_CUDA_MEMORY_CACHING``, whatever its value, torch hands out what the driver gives and
    counts nothing (``forceUncachedAllocator`` of ``CUDACachingAllocator.cpp``); the driver's own allocator
    has neither peaks of requests nor blocks (``CUDAMallocAsyncAllocator.cpp``).
    """
    if _UNCACHED in os.environ:
        other, way_out = f"{_UNCACHED} is set", f"run it without {_UNCACHED}"
    elif (backend := torch.cuda.get_allocator_backend()) != "native":
        other, way_out = (
            f"the allocator is backend:{backend}",
            "leave the backend out of PYTORCH_CUDA_ALLOC_CONF",
        )
    else:
        return
    raise EnvironmentUnavailableError(
        f"memory on the GPU cannot be measured, because {other}, which does not count as torch's caching "
        f"allocator does: {way_out}"
    )


def _set_allocator(settings: str) -> None:
    """Settings stay for the life of the process: torch changes those that are named and no other."""
    try:
        torch.cuda.memory._set_allocator_settings(settings)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"device.allocator: torch refuses {settings!r}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
