"""A fake GPU: tensors on CPU, counted as a caching allocator might, behind the calls that memgpt makes.

It counts more simply than torch does (no pools, no fragments): the tests that use it are of the profile, not
of the allocator.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mem_gpt_cli.ledger import EventLog, Ledger
from mem_gpt_cli.profile import lens
from mem_gpt_cli.profile.device import CudaDevice
from mem_gpt_cli.report import DeviceSummary
from tests.fake_nvml import GIB, MIB, FakeGpu, FakeNvml, FakeProcess

NAME = "NVIDIA H100 80GB HBM3"
CONTEXT = 512 * MIB
"""What a process has on the GPU beside torch's allocator."""
OTHERS = 300 * MIB
"""What other processes have there."""
CUBLAS = 8_519_680
SNAPSHOT = {
    "segments": [],
    "device_traces": [
        [
            {"action": "segment_alloc", "addr": 1 << 30, "size": 2 * MIB, "stream": 0, "frames": []},
            {"action": "alloc", "addr": 1 << 30, "size": 512, "stream": 0, "frames": []},
        ]
    ],
    "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": ""},
}


class Count:
    """A figure of ``torch.cuda.memory_stats``."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def change(self, nbytes: int) -> None:
        self.now += nbytes
        self.peak = max(self.peak, self.now)


class _CountedLog(EventLog):
    """Tells the GPU of each storage's birth and death, and keeps no record."""

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()
        self._gpu = gpu

    def operate(self, name: str, module: str) -> None:
        del module
        if name.removeprefix("aten.") in ("mm", "addmm", "bmm") and not self._gpu.cublas:
            self._gpu.cublas = CUBLAS
            self._gpu.change(CUBLAS)

    def _append(self, storage: int, sign: int) -> None:
        self._gpu.change(sign * self.storage_bytes[storage])


class FakeCuda(Ledger):
    """While it is entered, tensors count as the GPU's memory."""

    def __init__(self, total: int = 80 * GIB, limit: float = float("inf")) -> None:
        super().__init__()
        self.log = _CountedLog(self)
        self.limit = limit
        self.total = total
        self.cublas = 0
        self.calls: list[str] = []
        self.requested, self.allocated, self.reserved = Count(), Count(), Count()

    def change(self, nbytes: int) -> None:
        """A storage, or a library's workspace, comes or goes."""
        sign = 1 if nbytes > 0 else -1
        self.requested.change(nbytes)
        self.allocated.change(sign * (-(-abs(nbytes) // 512) * 512))
        segments = -(-self.allocated.now // (2 * MIB)) * 2 * MIB
        self.reserved.change(max(0, segments - self.reserved.now))
        if sign > 0 and self.reserved.now > self.limit:
            idle = self.reserved.now - self.allocated.now
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {nbytes} bytes. GPU 0 has a total capacity of 80 GiB "
                f"of which 0 bytes is free. Of the allocated memory {self.allocated.now / MIB:.2f} MiB is "
                f"allocated by PyTorch, and {idle / MIB:.2f} MiB is reserved by PyTorch but unallocated."
            )

    # -- what the driver sees

    def process_bytes(self) -> int:
        return CONTEXT + self.reserved.now

    def device_bytes(self) -> int:
        return self.process_bytes() + OTHERS

    def nvml_gpu(self, **more: Any) -> FakeGpu:
        """This GPU as NVML shows it."""
        told: dict[str, Any] = {
            "name": NAME,
            "total": self.total,
            "used": self.device_bytes,
            "processes": lambda: [FakeProcess(os.getpid(), self.process_bytes())],
        }
        return FakeGpu(**(told | more))

    # -- what torch.cuda is asked

    def synchronize(self, index: int) -> None:
        assert index == 0

    def clear_cublas(self) -> None:
        self.calls.append("clear cuBLAS")
        self.change(-self.cublas)
        self.cublas = 0

    def empty_cache(self) -> None:
        self.calls.append("empty cache")
        segments = -(-self.allocated.now // (2 * MIB)) * 2 * MIB
        self.reserved.change(segments - self.reserved.now)

    def reset_peaks(self, index: int) -> None:
        assert index == 0
        for count in (self.requested, self.allocated, self.reserved):
            count.peak = count.now

    def reset_counters(self, index: int) -> None:
        assert index == 0
        self.calls.append("reset counters")

    def memory_stats(self, index: int) -> dict[str, int]:
        assert index == 0
        counts = {"requested": self.requested, "allocated": self.allocated, "reserved": self.reserved}
        peaks = {f"{name}_bytes.all.peak": count.peak for name, count in counts.items()}
        now = {f"{name}_bytes.all.current": count.now for name, count in counts.items()}
        return peaks | now | {"num_alloc_retries": 0, "num_ooms": 0}

    def mem_get_info(self, index: int) -> tuple[int, int]:
        assert index == 0
        return self.total - self.device_bytes(), self.total

    def properties(self, index: int) -> Any:
        assert index == 0
        return SimpleNamespace(
            name=NAME, total_memory=self.total, uuid="00000000-1111-2222-3333-444444444444"
        )

    def record_history(self, **arguments: Any) -> None:
        self.calls.append(f"record {arguments['enabled']}")

    def snapshot(self) -> dict[str, Any]:
        self.calls.append("snapshot")
        return SNAPSHOT


@contextmanager
def fake_cuda(cuda: FakeCuda, nvml: FakeNvml | None = None) -> Iterator[FakeCuda]:
    """Let torch's calls and NVML's go to the fake GPU, and the profile take it for the device."""
    device = CudaDevice(torch.device("cpu"), DeviceSummary("cuda", NAME, cuda.total), index=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", nvml or FakeNvml(cuda.nvml_gpu()))
        patch.setattr(lens, "find_device", lambda _: device)
        patch.setattr(torch.cuda, "synchronize", cuda.synchronize)
        patch.setattr(torch.cuda, "empty_cache", cuda.empty_cache)
        patch.setattr(torch.cuda, "reset_peak_memory_stats", cuda.reset_peaks)
        patch.setattr(torch.cuda, "reset_accumulated_memory_stats", cuda.reset_counters)
        patch.setattr(torch.cuda, "memory_stats", cuda.memory_stats)
        patch.setattr(torch.cuda, "mem_get_info", cuda.mem_get_info)
        patch.setattr(torch.cuda, "get_device_properties", cuda.properties)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", cuda.clear_cublas, raising=False)
        patch.setattr(torch.cuda.memory, "_record_memory_history", cuda.record_history)
        patch.setattr(torch.cuda.memory, "_snapshot", cuda.snapshot)
        with cuda:
            yield cuda
