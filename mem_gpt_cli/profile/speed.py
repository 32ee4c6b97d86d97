"""The clean pass: how long each phase takes, and how high memory stands; nothing is instrumented."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from statistics import fmean

import torch

from mem_gpt_cli.profile.device import Device
from mem_gpt_cli.profile.progress import Ticker, Ticking
from mem_gpt_cli.profile.run import Job, run
from mem_gpt_cli.profile.watch import Levels, Observed, Watch, watch
from mem_gpt_cli.report import Speed


@dataclass(frozen=True)
class Lap:
    """One stretch of a phase."""

    phase: str
    seconds: float
    levels: Levels


class Stopwatch:
    """An observer that takes the time and the peaks of each phase."""

    def __init__(self, device: Device, watch: Watch) -> None:
        self.laps: list[Lap] = []
        self._device = device
        self._watch = watch

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Take the time of what is inside."""
        self._device.synchronise()
        self._watch.begin()
        start = time.perf_counter()
        yield
        self._device.synchronise()
        seconds = time.perf_counter() - start
        self.laps.append(Lap(name, seconds, self._watch.end()))

    def mark(self, component: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """Nothing to note."""


@dataclass(frozen=True)
class CleanRun:
    """What the clean pass measured."""

    laps: tuple[Lap, ...]
    observed: Observed = field(default_factory=Observed)

    def duration_s(self, phase: str) -> float | None:
        """Seconds in a phase, all its steps together."""
        seconds = [lap.seconds for lap in self.laps if lap.phase == phase]
        return sum(seconds) if seconds else None

    def levels(self, phase: str | None = None) -> Levels:
        """The highest of a phase, or of the whole run, each figure for itself.

        A figure that turned out not to be had, or not to be this process's, is ``None`` everywhere.
        """
        names = [level.name for level in fields(Levels)]
        found = {name: _highest(getattr(lap.levels, name) for lap in self._laps(phase)) for name in names}
        if phase is None:
            found.update(self.observed.highest)
        missing = [name for name, source in self.observed.sources.items() if source.why_not]
        return Levels(**(found | dict.fromkeys(missing)))

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
            tokens = recipe.workload.batch * recipe.workload.accumulate * recipe.lengths.seq
            return Speed(tokens_per_s=tokens / step, step_s=step)
        prefill = self.duration_s("prefill") or 0.0
        decode = [lap.seconds for lap in self.laps if lap.phase == "decode"]
        return Speed(
            tokens_per_s=recipe.workload.batch * recipe.lengths.new / (prefill + sum(decode)),
            ttft_ms=1000 * prefill,
            decode_ms_per_token=1000 * fmean(decode) if decode else None,
        )

    def _step_s(self) -> float:
        """Seconds of a step: a forward and a backward for each of its batches, and the optimizer's part."""
        steps: list[float] = []
        seconds = 0.0
        for lap in self.laps:
            if lap.phase in ("forward", "backward", "optimizer_step"):
                seconds += lap.seconds
            if lap.phase == "optimizer_step":
                steps.append(seconds)
                seconds = 0.0
        return fmean(steps[1:] or steps)


def clean_run(job: Job, ticker: Ticker, *, warm_up: bool = True) -> CleanRun:
    """Run the workload with nothing but a stopwatch and a watch over memory.

    ``warm_up`` runs a few tokens first; leave it out where this process has run the workload already.
    """
    with watch(job.device) as on_duty:
        stopwatch = Stopwatch(job.device, on_duty)
        run(job, Ticking(stopwatch, ticker, lambda: None), warm_up=warm_up)
    return CleanRun(tuple(stopwatch.laps), on_duty.observed())


def _highest(counts: Iterable[int | None]) -> int | None:
    """The largest count; ``None`` as soon as one is missing."""
    found = list(counts)
    known = [count for count in found if count is not None]
    return max(known) if known and len(known) == len(found) else None
