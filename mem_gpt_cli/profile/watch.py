"""Who watches memory while the clean pass runs, and what they tell of each phase and of the whole run.

On CPU it is the system's count of the resident set. On a GPU it is torch's allocator for what is allocated
and reserved, and the driver, sampled, for the process, the whole GPU and the board.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from mem_gpt_cli.devices.nvml import Nvml, Reading
from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.profile.device import CudaDevice, Device
from mem_gpt_cli.profile.process import ProcessPeak
from mem_gpt_cli.profile.sampler import Figure, Gauge, Sampler
from mem_gpt_cli.report import Source, Telemetry
from mem_gpt_cli.report.sizes import render_bytes

DRIVER_FIGURES = ("process", "device")
ALLOCATOR = "the peak that torch's allocator counts"


@dataclass(frozen=True)
class Levels:
    """How high memory stood in a stretch of the run; ``None`` where nobody tells."""

    allocated_bytes: int | None = None
    requested_bytes: int | None = None
    reserved_bytes: int | None = None
    process_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class Observed:
    """What a watch tells of the whole run.

    ``highest`` holds the figures of ``Levels`` that were also read between the phases; ``sources`` says how
    each was got; ``details`` goes into the report's.
    """

    highest: Mapping[str, int | None] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    telemetry: Telemetry | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, int] = field(default_factory=dict)


class Watch(Protocol):
    """Watches one stretch after the other."""

    def begin(self) -> None:
        """A stretch begins."""
        ...

    def end(self) -> Levels:
        """It is over: how high memory stood."""
        ...

    def observed(self) -> Observed:
        """What is known of all stretches."""
        ...


def watch(device: Device) -> AbstractContextManager[Watch]:
    """The watch for a device; it is on duty while the context is entered."""
    return gpu_watch(device) if isinstance(device, CudaDevice) else process_watch()


class ProcessWatch:
    """The resident set of this process."""

    def __init__(self) -> None:
        self._process = ProcessPeak()

    def begin(self) -> None:
        """Reset the peak."""
        self._process.reset()

    def end(self) -> Levels:
        """Read it."""
        return Levels(process_bytes=self._process.read())

    def observed(self) -> Observed:
        """Nothing more than the stretches tell."""
        return Observed()


@contextmanager
def process_watch() -> Iterator[ProcessWatch]:
    """A watch over the process's resident set."""
    yield ProcessWatch()


class GpuWatch:
    """The allocator's peaks, and the driver's figures from a sampler at work."""

    def __init__(self, device: CudaDevice, sampler: Sampler) -> None:
        self._device = device
        self._sampler = sampler
        self._not_ours: str | None = None
        device.reset_counters()
        self._start_reserved_bytes = device.count().reserved_now_bytes

    def begin(self) -> None:
        """Reset the allocator's peaks, and attribute samples to this stretch."""
        self._device.reset_peaks()
        self._sampler.begin()

    def end(self) -> Levels:
        """Read both."""
        count, found = self._device.count(), self._sampler.end(DRIVER_FIGURES)
        self._doubt(found["process"], count.reserved_now_bytes)
        return Levels(
            allocated_bytes=count.allocated_bytes,
            requested_bytes=count.requested_bytes,
            reserved_bytes=count.reserved_bytes,
            process_bytes=_whole(found["process"].highest),
            device_bytes=_whole(found["device"].highest),
        )

    def observed(self) -> Observed:
        """The whole run, the time between the phases included."""
        figures = self._sampler.figures
        process = _source(figures["process"], self._sampler)
        if self._not_ours:
            process = Source(process.how, self._not_ours)
        return Observed(
            highest={
                "process_bytes": _whole(figures["process"].highest),
                "device_bytes": _whole(figures["device"].highest),
            },
            sources={
                "allocated_bytes": Source(ALLOCATOR),
                "reserved_bytes": Source(ALLOCATOR),
                "process_bytes": process,
                "device_bytes": _source(figures["device"], self._sampler),
            },
            telemetry=_telemetry(self._sampler),
            warnings=tuple(self._warnings()),
            details={
                "start_reserved_bytes": self._start_reserved_bytes,
                "allocator_retries": self._device.count().retries,
            },
        )

    def _doubt(self, process: Figure, reserved_bytes: int) -> None:
        """In a container the driver's number of another process may be this one's."""
        last = process.last.value if process.last else None
        if last is not None and last < reserved_bytes:
            self._not_ours = (
                f"NVML tells {render_bytes(int(last))} of the process with this number, less than the "
                f"{render_bytes(reserved_bytes)} that torch alone has reserved: it is another's, or not all"
            )

    def _warnings(self) -> Iterator[str]:
        if self._start_reserved_bytes:
            yield (
                f"{render_bytes(self._start_reserved_bytes)} were reserved before the measured run began, by "
                "tensors that this process held already: a fresh process would reserve otherwise"
            )
        if self._sampler.lost:
            yield (
                "the driver's figures end in the middle of the run, those before it are kept: "
                f"{self._sampler.lost}"
            )


@contextmanager
def gpu_watch(device: CudaDevice) -> Iterator[GpuWatch]:
    """A watch over a GPU; its sampler runs meanwhile."""
    with ExitStack() as stack:
        sampler = stack.enter_context(Sampler(_gauges(device, stack)))
        yield GpuWatch(device, sampler)


def _gauges(device: CudaDevice, stack: ExitStack) -> Mapping[str, Gauge]:
    """Whom to ask for each figure: NVML, and CUDA where it does not tell of the GPU's memory."""
    try:
        gpu = device.driver_view(stack.enter_context(Nvml()))
        told = gpu.memory()
    except EnvironmentUnavailableError as error:
        silent = Reading(None, "NVML", str(error))
        return {"device": device.in_use, "process": lambda: silent}
    return {
        "device": device.in_use if told.value is None else gpu.memory,
        "process": gpu.process_memory,
        "power": gpu.power,
        "utilization": gpu.utilization,
        "temperature": gpu.temperature,
    }


def _source(figure: Figure, sampler: Sampler) -> Source:
    if figure.last is None:
        return Source("NVML", sampler.lost or "nothing was read")
    every = f", sampled every {1000 * sampler.interval_s:.0f} ms" if sampler.interval_s else ""
    return Source(figure.last.how + every, figure.last.why_not)


def _telemetry(sampler: Sampler) -> Telemetry | None:
    power, utilization, temperature = (
        sampler.figures.get(name, Figure()) for name in ("power", "utilization", "temperature")
    )
    if not (power.count or utilization.count or temperature.count):
        return None
    return Telemetry(
        power_mean_w=power.mean,
        power_max_w=power.highest,
        utilization_mean_percent=utilization.mean,
        temperature_max_c=temperature.highest,
        interval_ms=1000 * sampler.interval_s if sampler.interval_s else None,
        samples=sampler.ticks,
    )


def _whole(value: int | float | None) -> int | None:
    return None if value is None else int(value)
