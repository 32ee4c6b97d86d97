"""The clean pass: how long each phase takes, and how large the process becomes; nothing is instrumented."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import torch

from mem_gpt_cli.profile.device import AllocatorPeak, Device
from mem_gpt_cli.profile.process import ProcessPeak
from mem_gpt_cli.profile.progress import Ticker, Ticking
from mem_gpt_cli.profile.run import Job, run
from mem_gpt_cli.report import Speed


@dataclass(frozen=True)
class Lap:
    """One stretch of a phase."""

    phase: str
    seconds: float
    process_bytes: int | None
    allocator: AllocatorPeak


class Stopwatch:
    """An observer that takes the time and the peaks of each phase."""

    def __init__(self, device: Device) -> None:
        self.laps: list[Lap] = []
        self._device = device
        self._process = ProcessPeak()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Take the time of what is inside."""
        self._device.synchronise()
        self._device.reset_peak()
        self._process.reset()
        start = time.perf_counter()
        yield
        self._device.synchronise()
        seconds = time.perf_counter() - start
        self.laps.append(Lap(name, seconds, self._process.read(), self._device.peak()))

    def mark(self, component: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """Nothing to note."""


@dataclass(frozen=True)
class CleanRun:
    """What the clean pass measured."""

    laps: tuple[Lap, ...]

    def duration_s(self, phase: str) -> float | None:
        """Seconds in a phase, all its steps together."""
        seconds = [lap.seconds for lap in self.laps if lap.phase == phase]
        return sum(seconds) if seconds else None

    def process_bytes(self, phase: str | None = None) -> int | None:
        """Peak resident bytes of a phase, or of the whole run; ``None`` where the system does not tell."""
        return _highest(lap.process_bytes for lap in self._laps(phase))

    def allocator(self, phase: str | None = None) -> AllocatorPeak:
        """The device allocator's peaks of a phase, or of the whole run."""
        return AllocatorPeak(
            _highest(lap.allocator.allocated_bytes for lap in self._laps(phase)),
            _highest(lap.allocator.reserved_bytes for lap in self._laps(phase)),
        )

    def _laps(self, phase: str | None) -> list[Lap]:
        return [lap for lap in self.laps if phase in (None, lap.phase)]

    def speed(self, job: Job) -> Speed:
        """Tokens a second and the like.

        Inference: the time to the first token is the prefill's; tokens a second are all new tokens of the
        batch over prefill and decode. Training: a step is forward, backward and optimizer step; the first,
        in which the optimizer makes its state, counts only where it is the only one.
        """
        recipe = job.recipe
        if recipe.task == "training":
            step = self._step_s()
            return Speed(tokens_per_s=recipe.workload.batch * recipe.lengths.seq / step, step_s=step)
        prefill = self.duration_s("prefill") or 0.0
        decode = [lap.seconds for lap in self.laps if lap.phase == "decode"]
        return Speed(
            tokens_per_s=recipe.workload.batch * recipe.lengths.new / (prefill + sum(decode)),
            ttft_ms=1000 * prefill,
            decode_ms_per_token=1000 * fmean(decode) if decode else None,
        )

    def _step_s(self) -> float:
        phases = ("forward", "backward", "optimizer_step")
        laps = [[lap.seconds for lap in self.laps if lap.phase == phase] for phase in phases]
        steps = [sum(step) for step in zip(*laps, strict=True)]
        return fmean(steps[1:] or steps)


def clean_run(job: Job, ticker: Ticker) -> CleanRun:
    """Run the workload with nothing but a stopwatch."""
    stopwatch = Stopwatch(job.device)
    run(job, Ticking(stopwatch, ticker, lambda: None), warm_up=True)
    return CleanRun(tuple(stopwatch.laps))


def _highest(counts: Iterable[int | None]) -> int | None:
    """The largest count; ``None`` as soon as one is missing."""
    found = list(counts)
    known = [count for count in found if count is not None]
    return max(known) if known and len(known) == len(found) else None
