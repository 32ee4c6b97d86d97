"""A fake ``pynvml``: the functions and error classes that memgpt uses, over GPUs that a test makes up."""

# ruff: noqa: N802, N815  (the names are NVML's own)

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from ctypes import c_uint
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

MIB = 2**20
GIB = 2**30


@dataclass
class FakeProcess:
    """A process as the driver lists it."""

    pid: int
    usedGpuMemory: int | None


@dataclass
class FakeGpu:
    """A GPU, or a MIG instance of its ``parent``; what is in ``unsupported`` is answered by Not Supported."""

    uuid: str = "GPU-00000000-1111-2222-3333-444444444444"
    name: str = "NVIDIA H100 80GB HBM3"
    bus_id: str = "00000000:17:00.0"
    capability: tuple[int, int] = (9, 0)
    total: int = 80 * GIB
    reserved: int = 600 * MIB
    used: int | Callable[[], int] = 4 * GIB
    processes: Sequence[FakeProcess] | Callable[[], Sequence[FakeProcess]] = ()
    power_mw: Sequence[int] = (250_000,)
    utilization: Sequence[int] = (90,)
    temperature: Sequence[int] = (55,)
    unsupported: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    lost_after: float = float("inf")
    instances: Sequence[FakeGpu | None] | None = None
    parent: FakeGpu | None = None
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turns = {name: itertools.count() for name in ("power_mw", "utilization", "temperature")}
        for instance in self.instances or ():
            if instance is not None:
                instance.parent = self

    def next(self, figure: str) -> int:
        """The next value of a figure, its last one again when there are no more."""
        values: Sequence[int] = getattr(self, figure)
        return values[min(next(self._turns[figure]), len(values) - 1)]


class NVMLError(Exception):
    """The base class, as in pynvml."""

    text = "Unknown Error"

    def __str__(self) -> str:
        return self.text


def _error(name: str, text: str) -> type[NVMLError]:
    return type(f"NVMLError_{name}", (NVMLError,), {"text": text})


class FakeNvml:
    """What ``import pynvml`` gives in a test."""

    NVMLError = NVMLError
    NVMLError_NotSupported = _error("NotSupported", "Not Supported")
    NVMLError_NotFound = _error("NotFound", "Not Found")
    NVMLError_NoPermission = _error("NoPermission", "Insufficient Permissions")
    NVMLError_FunctionNotFound = _error("FunctionNotFound", "Function Not Found")
    NVMLError_GpuIsLost = _error("GpuIsLost", "GPU is lost")
    NVMLError_ResetRequired = _error("ResetRequired", "GPU requires restart")
    NVMLError_LibraryNotFound = _error("LibraryNotFound", "NVML Shared Library Not Found")
    NVMLError_InvalidArgument = _error("InvalidArgument", "Invalid Argument")
    NVML_TEMPERATURE_GPU = 0
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlMemory_v2 = 0x02000028

    def __init__(self, *gpus: FakeGpu, driver: str | None = "580.95.05", there: bool = True) -> None:
        self.gpus = gpus
        self.driver = driver
        self.there = there
        self.opened = 0

    def nvmlInit(self) -> None:
        if not self.there:
            raise self.NVMLError_LibraryNotFound
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        if self.driver is None:
            raise self.NVMLError_NoPermission
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        if index >= len(self.gpus):
            raise self.NVMLError_InvalidArgument
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        return self._first(lambda gpu: gpu.uuid == uuid)

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> FakeGpu:
        return self._first(lambda gpu: gpu.bus_id.endswith(bus_id) and gpu.parent is None)

    def _first(self, wanted: Callable[[FakeGpu], bool]) -> FakeGpu:
        instances = [part for gpu in self.gpus for part in gpu.instances or () if part is not None]
        for gpu in (*self.gpus, *instances):
            if wanted(gpu):
                return gpu
        raise self.NVMLError_NotFound

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> list[int]:
        self._answer(gpu, "capability", whole_gpu=True)
        return list(gpu.capability)

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        if gpu.instances is None:
            raise self.NVMLError_NotSupported
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu) -> int:
        if gpu.instances is None:
            raise self.NVMLError_NotSupported
        return len(gpu.instances)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, index: int) -> FakeGpu:
        instance = (gpu.instances or ())[index]
        if instance is None:
            raise self.NVMLError_NotFound
        return instance

    def nvmlDeviceIsMigDeviceHandle(self, gpu: FakeGpu) -> Any:
        return c_uint(gpu.parent is not None)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, gpu: FakeGpu) -> FakeGpu:
        if gpu.parent is None:
            raise self.NVMLError_InvalidArgument
        return gpu.parent

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, version: int | None = None) -> Any:
        self._answer(gpu, "memory_v2" if version else "memory")
        used = gpu.used() if callable(gpu.used) else gpu.used
        if not version:
            return SimpleNamespace(total=gpu.total, used=used + gpu.reserved)
        return SimpleNamespace(total=gpu.total, used=used, reserved=gpu.reserved)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, gpu: FakeGpu) -> list[FakeProcess]:
        self._answer(gpu, "processes_v3", "processes")
        return list(gpu.processes() if callable(gpu.processes) else gpu.processes)

    def nvmlDeviceGetComputeRunningProcesses_v2(self, gpu: FakeGpu) -> list[FakeProcess]:
        self._answer(gpu, "processes")
        return list(gpu.processes() if callable(gpu.processes) else gpu.processes)

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:
        self._answer(gpu, "power", whole_gpu=True)
        return gpu.next("power_mw")

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu) -> Any:
        self._answer(gpu, "utilization", whole_gpu=True)
        return SimpleNamespace(gpu=gpu.next("utilization"), memory=1)

    def nvmlDeviceGetTemperature(self, gpu: FakeGpu, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        self._answer(gpu, "temperature", whole_gpu=True)
        return gpu.next("temperature")

    def _answer(self, gpu: FakeGpu, *names: str, whole_gpu: bool = False) -> None:
        """Note the call, and fail as the GPU was told to."""
        gpu.calls.append(names[0])
        if len(gpu.calls) > gpu.lost_after:
            raise self.NVMLError_GpuIsLost
        if gpu.missing & set(names):
            raise self.NVMLError_FunctionNotFound
        if gpu.unsupported & set(names) or (whole_gpu and gpu.parent is not None):
            raise self.NVMLError_NotSupported
