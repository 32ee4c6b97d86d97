"""What the driver tells of a GPU, read through NVML: each figure with how it was got, or why it is missing.

NVML is the library behind ``nvidia-smi``. It answers per GPU and per MIG instance, and differs in what it
offers by chip, driver and container; what it does not tell is ``None`` with a reason, never 0. Functions and
their notes: NVIDIA's NVML API reference, "Device Queries" and "Multi Instance GPU Management".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from mem_gpt_cli.errors import EnvironmentUnavailableError

_PID_NAMESPACE = Path("/proc/self/ns/pid")
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""``PROC_PID_INIT_INO`` of Linux's ``include/linux/proc_ns.h``: where the driver counts its processes."""
_NOT_AVAILABLE = 2**64 - 1
"""``NVML_VALUE_NOT_AVAILABLE`` of ``nvml.h``."""


class GpuLostError(EnvironmentUnavailableError):
    """The GPU fell off the bus, or has to be reset: nothing more can be read from it."""


@dataclass(frozen=True)
class Reading:
    """One figure: ``value`` is ``None`` where it is not to be had, and ``why_not`` says why."""

    value: int | float | None
    how: str
    why_not: str | None = None


class Nvml:
    """NVML, opened for as long as the object is entered.

    Args:
        library: the module ``pynvml``, or one with the same functions; ``None`` imports it.

    Raises:
        EnvironmentUnavailableError: if the package or the driver's library is not there.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = _pynvml() if library is None else library
        try:
            self._library.nvmlInit()
        except self._library.NVMLError as error:
            raise EnvironmentUnavailableError(
                f"NVML cannot be used ({error}): nvidia-smi of this machine's driver must work first"
            ) from error

    def __enter__(self) -> Nvml:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the library back; the readings' objects are of no use afterwards."""
        with suppress(self._library.NVMLError):
            self._library.nvmlShutdown()

    @property
    def driver_version(self) -> str | None:
        """The driver's version, e.g. ``580.95.05``."""
        return _text(self._library, self._library.nvmlSystemGetDriverVersion)

    @property
    def count(self) -> int:
        """GPUs that the driver shows, whatever ``CUDA_VISIBLE_DEVICES`` says.

        Raises:
            EnvironmentUnavailableError: if it does not tell.
        """
        try:
            return int(self._library.nvmlDeviceGetCount())
        except self._library.NVMLError as error:
            raise EnvironmentUnavailableError(
                f"NVML does not tell how many GPUs there are ({error}): nvidia-smi must work first"
            ) from error

    def gpus(self) -> tuple[NvmlGpu, ...]:
        """All GPUs in the order of their PCI bus ids, which is NVML's own."""
        return tuple(self.by_index(index) for index in range(self.count))

    def by_index(self, index: int) -> NvmlGpu:
        """The GPU with NVML's number ``index``.

        Raises:
            EnvironmentUnavailableError: if there is none.
        """
        return self._find(self._library.nvmlDeviceGetHandleByIndex, index)

    def by_uuid(self, uuid: str) -> NvmlGpu:
        """The GPU (``GPU-...``) or MIG instance (``MIG-...``) with that UUID.

        Raises:
            EnvironmentUnavailableError: if there is none.
        """
        return self._find(self._library.nvmlDeviceGetHandleByUUID, uuid)

    def by_bus_id(self, bus_id: str) -> NvmlGpu:
        """The GPU at that place of the PCI bus, e.g. ``00000000:17:00.0``.

        Raises:
            EnvironmentUnavailableError: if there is none.
        """
        return self._find(self._library.nvmlDeviceGetHandleByPciBusId, bus_id)

    def _find(self, function: Callable[[Any], Any], key: str | int) -> NvmlGpu:
        try:
            return NvmlGpu(self._library, function(key))
        except self._library.NVMLError as error:
            _raise_if_lost(self._library, error)
            raise EnvironmentUnavailableError(f"NVML cannot open the GPU {key!r} ({error})") from error


@dataclass(frozen=True)
class NvmlGpu:
    """One GPU, or one MIG instance of a GPU.

    Every reading raises ``GpuLostError`` once the GPU is gone.
    """

    library: Any = field(repr=False)
    handle: Any = field(repr=False)

    @cached_property
    def name(self) -> str:
        """What the driver calls it, e.g. ``NVIDIA H100 80GB HBM3``; a MIG instance's has its profile."""
        return _text(self.library, self.library.nvmlDeviceGetName, self.handle) or "unknown GPU"

    @cached_property
    def uuid(self) -> str | None:
        """``GPU-...`` or ``MIG-...``."""
        return _text(self.library, self.library.nvmlDeviceGetUUID, self.handle)

    @cached_property
    def capability(self) -> tuple[int, int] | None:
        """CUDA compute capability, ``(major, minor)``."""
        try:
            major, minor = self.library.nvmlDeviceGetCudaComputeCapability(self._board)
        except self.library.NVMLError as error:
            _raise_if_lost(self.library, error)
            return None
        return int(major), int(minor)

    @cached_property
    def is_mig(self) -> bool:
        """Whether this is a MIG instance."""
        try:
            return bool(self.library.nvmlDeviceIsMigDeviceHandle(self.handle))
        except self.library.NVMLError:
            return False

    @property
    def in_mig_mode(self) -> bool:
        """Whether this is a whole GPU that is cut into instances, on which alone work can run."""
        try:
            current, _ = self.library.nvmlDeviceGetMigMode(self.handle)
        except self.library.NVMLError:
            return False
        return bool(current == self.library.NVML_DEVICE_MIG_ENABLE) and not self.is_mig

    def mig_instances(self) -> tuple[NvmlGpu, ...]:
        """The instances of a GPU in MIG mode that this process may see."""
        return tuple(self._mig_instances())

    def _mig_instances(self) -> Iterator[NvmlGpu]:
        try:
            most = self.library.nvmlDeviceGetMaxMigDeviceCount(self.handle)
        except self.library.NVMLError:
            return
        for index in range(most):
            with suppress(self.library.NVMLError):  # a place without an instance
                yield NvmlGpu(
                    self.library, self.library.nvmlDeviceGetMigDeviceHandleByIndex(self.handle, index)
                )

    def total(self) -> Reading:
        """Bytes of memory that there are."""
        return self._memory("total")

    def memory(self) -> Reading:
        """Bytes that are in use, all processes together.

        Version 2 of the call keeps the driver's own reserve apart; version 1 counts it as used.
        """
        return self._memory("used")

    def process_memory(self, pid: int | None = None) -> Reading:
        """Bytes that one process holds, its CUDA context and its libraries included.

        The driver lists processes by the numbers of the whole machine, so in a container the own one may be
        missing, and no other is taken for it.
        """
        pid = os.getpid() if pid is None else pid
        how = "NVML, list of the processes" + self._of_what
        try:
            listed = self._processes()
        except Exception as error:
            return self._missing(how, error)
        used = [process.usedGpuMemory for process in listed if process.pid == pid]
        if not used:
            return Reading(None, how, _not_listed(pid, len(listed)))
        if not used[0] or used[0] == _NOT_AVAILABLE:
            return Reading(None, how, "NVML lists this process without its memory")
        return Reading(int(used[0]), how)

    def processes_memory(self) -> Reading:
        """Bytes that all processes hold together, as far as NVML lists them: 0 where it lists none."""
        how = "NVML, list of the processes" + self._of_what
        try:
            used = [process.usedGpuMemory for process in self._processes()]
        except Exception as error:
            return self._missing(how, error)
        if any(not size or size == _NOT_AVAILABLE for size in used):
            return Reading(None, how, "NVML lists processes without their memory")
        return Reading(sum(used), how)

    def power(self) -> Reading:
        """Watts that the whole board draws now."""
        how = "NVML, power" + self._of_the_whole
        return self._ask(how, lambda: self.library.nvmlDeviceGetPowerUsage(self._board) / 1000)

    def utilization(self) -> Reading:
        """Percent of the driver's last sampling period in which a kernel ran."""
        how = "NVML, utilization" + self._of_what
        return self._ask(how, lambda: int(self.library.nvmlDeviceGetUtilizationRates(self.handle).gpu))

    def temperature(self) -> Reading:
        """Degrees Celsius of the chip."""
        how, sensor = "NVML, temperature" + self._of_the_whole, self.library.NVML_TEMPERATURE_GPU
        return self._ask(how, lambda: int(self.library.nvmlDeviceGetTemperature(self._board, sensor)))

    def _memory(self, figure: str) -> Reading:
        newer = self._ask(
            "NVML, version 2 of the memory call" + self._of_what,
            lambda: int(getattr(self._memory_info(self.library.nvmlMemory_v2), figure)),
        )
        if newer.value is not None:
            return newer
        note = ", which counts the driver's own reserve as used" if figure == "used" else ""
        return self._ask(
            "NVML, version 1 of the memory call" + self._of_what + note,
            lambda: int(getattr(self._memory_info(None), figure)),
        )

    def _memory_info(self, version: int | None) -> Any:
        return self.library.nvmlDeviceGetMemoryInfo(self.handle, version)

    def _processes(self) -> list[Any]:
        """By the newest version of the call that the driver has."""
        try:
            return list(self.library.nvmlDeviceGetComputeRunningProcesses_v3(self.handle))
        except self.library.NVMLError_FunctionNotFound:
            return list(self.library.nvmlDeviceGetComputeRunningProcesses_v2(self.handle))

    def _ask(self, how: str, call: Callable[[], int | float]) -> Reading:
        try:
            return Reading(call(), how)
        except Exception as error:
            return self._missing(how, error)

    def _missing(self, how: str, error: Exception) -> Reading:
        """The reading of a call that failed; whatever is no answer of NVML's goes on as it is."""
        if not isinstance(error, self.library.NVMLError):
            raise error
        _raise_if_lost(self.library, error)
        return Reading(None, how, f"NVML does not tell ({error}){self._of_what and ' of a MIG instance'}")

    @cached_property
    def _board(self) -> Any:
        """The handle of the whole GPU, which alone has a power and a temperature."""
        if not self.is_mig:
            return self.handle
        return self.library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self.handle)

    @property
    def _of_what(self) -> str:
        return " of the MIG instance" if self.is_mig else ""

    @property
    def _of_the_whole(self) -> str:
        return " of the whole GPU that the MIG instance is a part of" if self.is_mig else ""


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise EnvironmentUnavailableError(
            "NVML cannot be read, because the package nvidia-ml-py is not installed: "
            "install it with `pip install nvidia-ml-py`"
        ) from error
    return pynvml


def _text(library: Any, function: Callable[..., Any], *arguments: Any) -> str | None:
    try:
        return str(function(*arguments))
    except library.NVMLError:
        return None


def _raise_if_lost(library: Any, error: Exception) -> None:
    if isinstance(error, library.NVMLError_GpuIsLost | library.NVMLError_ResetRequired):
        raise GpuLostError(f"the GPU is lost ({error}): see `dmesg` for the driver's Xid message") from error


def _not_listed(pid: int, listed: int) -> str:
    if not listed:
        return "NVML lists no process on this GPU, as in most containers"
    others = f"process {pid} is not among the {listed} that NVML lists on this GPU"
    return f"{others}: a container numbers its processes apart" if _in_a_container() else others


def _in_a_container() -> bool:
    """Whether this process is numbered in a namespace of its own; see pid_namespaces(7)."""
    try:
        return str(_PID_NAMESPACE.readlink()) != _INITIAL_PID_NAMESPACE
    except OSError:
        return False
