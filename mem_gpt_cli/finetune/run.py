"""A run: the steps of a job one after the other, each kept, from wherever an earlier process left off."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mem_gpt_cli.attention.backend import attention_kernels
from mem_gpt_cli.errors import GateError
from mem_gpt_cli.finetune.account import epochs_after, read_before
from mem_gpt_cli.finetune.data import batches
from mem_gpt_cli.finetune.evaluate import evaluate
from mem_gpt_cli.finetune.interrupts import Interrupted, Wish
from mem_gpt_cli.finetune.job import Job
from mem_gpt_cli.finetune.log import Sums
from mem_gpt_cli.finetune.memory import StepPeak
from mem_gpt_cli.finetune.result import save_result
from mem_gpt_cli.finetune.rows import Order
from mem_gpt_cli.finetune.schedule import build_schedule
from mem_gpt_cli.finetune.state import (
    Moving,
    load_state,
    not_finite,
    place_of,
    random_states,
    save_state,
    seed_everything,
)
from mem_gpt_cli.model.facts import trainable
from mem_gpt_cli.profile.watch import Levels, Watch, watch
from mem_gpt_cli.workload.build import build
from mem_gpt_cli.workload.threads import intra_op_threads
from mem_gpt_cli.workload.training import Training

_ANEW = "lower optimizer.lr, or set workload.clip_norm, and begin anew in another --out"
"""Going on from a checkpoint comes to the same end, and with other options it is refused."""


class Watcher(Protocol):
    """Whoever looks on: the command's progress."""

    def doing(self, what: str) -> None:
        """Something begins that is no step, or a phase of one."""
        ...

    def step(self, line: dict[str, Any], steps: int, levels: Levels) -> None:
        """A step of ``steps`` is over; ``line`` is that of the log."""
        ...

    def note(self, sentence: str) -> None:
        """Something that a reader of the account should know as well."""
        ...


@dataclass(frozen=True)
class Finished:
    """A run at its end: how it evaluated, what it took, and where its result is."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    sums: Sums
    steps_peak: int | None
    levels: Levels
    levels_before: Levels
    resumed_from: int | None
    trained_parameters: int
    result: Path | None
    notes: tuple[str, ...]


class Phases:
    """An observer that only knows which phase runs, for the sentence on memory that ran out."""

    def __init__(self) -> None:
        self.current = "the preparation"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Remember it."""
        self.current = name.replace("_", " ")
        yield

    def mark(self, component: str, tensors: Any) -> None:
        """Nothing to note."""


class Heights:
    """How high memory stood since the model began to load, as far as it was read."""

    def __init__(self, on_duty: Watch) -> None:
        self._watch, self._highest = on_duty, Levels()
        on_duty.begin()

    def read(self) -> Levels:
        """The highest figures so far."""
        now = asdict(self._watch.end())
        self._watch.begin()
        before = asdict(self._highest)
        known = {name: [v for v in (now[name], before[name]) if v is not None] for name in now}
        self._highest = Levels(**{name: max(values, default=None) for name, values in known.items()})
        return self._highest


class Run:
    """One process's work on a job; ``carry_out`` does all of it."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        self.job, self.watcher = job, watcher
        self.recipe, self.device = job.recipe, job.device.torch_device
        self.phases = Phases()
        self.order = Order(len(job.data.training), job.recipe.workload.seed)
        self.wish = Wish()
        self.sums = Sums()
        self._notes: list[str] = []

    def carry_out(self) -> Finished:
        """Train to the end, from the newest checkpoint or the beginning.

        Raises:
            Interrupted: after a signal, once everything is kept.
            GateError: if the loss, or a weight, is no number any more.
            EnvironmentUnavailableError: where the disk does not take what is written.
        """
        with intra_op_threads(self.job.asked["threads"]), watch(self.job.device) as on_duty:
            heights = Heights(on_duty)
            levels_before = heights.read()
            model = self._model()
            before = self._before(model)
            moving = self._begin(model)
            resumed_from = self._resume(moving)
            peak = StepPeak(self.device, self.job.steps - (resumed_from or 0))
            with self.wish.heard():
                self._steps(moving, resumed_from or 0, peak, heights)
            levels = heights.read()
            after = self._evaluated(model, "evaluating once more")
            result = self._save(model)
        count = sum(parameter.numel() for parameter in trainable(model).values())
        notes = tuple(self._notes)
        return Finished(
            before, after, self.sums, peak.nbytes, levels, levels_before, resumed_from, count, result, notes
        )

    def _note(self, sentence: str) -> None:
        if self.job.processes.is_first:
            self._notes.append(sentence)
            self.watcher.note(sentence)

    def _model(self) -> torch.nn.Module:
        self.watcher.doing("loading the model")
        seed_everything(self.recipe.workload.seed)
        return build(self.job.source, self.recipe, self.device)

    def _before(self, model: torch.nn.Module) -> dict[str, Any] | None:
        """How the model does before it learns anything: measured once, and never again after a kill."""
        found = read_before(self.job.folder)
        if found is None:
            found = {"evaluation": self._evaluated(model, "evaluating")}
            self.job.processes.wait()
            if self.job.processes.is_first:
                self.job.folder.before = found
        evaluation: dict[str, Any] | None = found["evaluation"]
        return evaluation

    def _evaluated(self, model: torch.nn.Module, what: str) -> dict[str, Any] | None:
        rows = self.job.data.held_out
        if rows is None:
            return None
        self.watcher.doing(what)
        return evaluate(model, self.recipe, rows, self.device).as_json()

    def _begin(self, model: torch.nn.Module) -> Moving:
        """Optimizer and schedule; random numbers begin anew, so that an evaluation before changes none."""
        self.training = Training(
            self.recipe, lambda: self.job.processes.average_gradients(model.parameters())
        )
        self.training.prepare(model, self.phases)
        seed_everything(self.recipe.workload.seed + self.job.processes.rank)
        optimizer = self.training.optimizer
        return Moving(model, optimizer, build_schedule(self.recipe, optimizer, self.job.steps))

    def _resume(self, moving: Moving) -> int | None:
        """Go to where the newest checkpoint stands; the step after which it does, ``None`` without one."""
        folder = self.job.folder
        newest = folder.checkpoints.newest(self._note)
        step = 0
        if newest is not None:
            load_state(newest, moving, self.device, self.job.processes.rank)
            place = place_of(newest)
            step, self.sums = place["step"], Sums(**place["sums"])
            gc.collect()
        self.job.processes.wait()
        if self.job.processes.is_first and (there := folder.log.cut(step)) != step:
            self._note(f"{folder.log.path} holds {there} of the {step} steps so far: it was changed, or lost")
        return step if newest is not None else None

    def _steps(self, moving: Moving, done: int, peak: StepPeak, heights: Heights) -> None:
        every = self.recipe.finetune.checkpoint_every
        steps = self.job.steps
        with attention_kernels(self.recipe):
            for step in range(done + 1, steps + 1):
                with peak.watching(moving.model, moving.optimizer):
                    stop = self._step(moving, step, heights)
                if stop or step == steps or (every is not None and step % every == 0):
                    self._checkpoint(moving, step)
                if stop and step < steps:
                    raise Interrupted(step, steps)

    def _step(self, moving: Moving, step: int, heights: Heights) -> bool:
        """One step, and its line in the log; whether the run is to stop after it."""
        job, begun = self.job, time.perf_counter()
        rows = self.order.take((step - 1) * job.rows_a_step, job.rows_a_step)
        chosen = rows.split(self.recipe.workload.batch)[job.processes.rank :: job.processes.count]
        learnt = job.data.training.learnt(rows)
        per_label = job.processes.count / learnt
        data = list(batches(job.data.training, chosen, per_label, self.recipe, self.device))
        rate = moving.optimizer.param_groups[0]["lr"]
        own = self.training.step(moving.model, data, self.phases)
        moving.schedule.step()
        loss, stop = job.processes.mean(
            torch.stack([own.float(), own.new_tensor(self.wish.is_there).float()])
        ).tolist()
        seconds = time.perf_counter() - begun
        if not math.isfinite(loss):
            raise GateError(f"the loss is {loss} at step {step}: {_ANEW}")
        line = {
            "step": step,
            "loss": loss,
            "lr": float(rate),
            "tokens": rows.numel() * self.recipe.lengths.seq,
            "learnt": learnt,
            "seconds": round(seconds, 6),
            "epoch": epochs_after(job, step),
        }
        self.sums.add(line)
        if job.processes.is_first:
            job.folder.log.add(line)
            self.watcher.step(line, job.steps, heights.read())
        return bool(stop > 0)

    def _checkpoint(self, moving: Moving, step: int) -> None:
        """Keep what was learnt, and nothing that is no number; the last step's is the result."""
        processes = self.job.processes
        broken = not_finite(moving.model)
        if broken is not None:
            raise GateError(f"{broken} holds values that are no numbers after step {step}: {_ANEW}")
        randoms = processes.gather(random_states(self.device))
        if processes.is_first:
            self.watcher.doing("writing a checkpoint")
            place = {"step": step, "rows": step * self.job.rows_a_step, "sums": asdict(self.sums)}
            self.job.folder.checkpoints.write(step, lambda folder: save_state(folder, moving, place, randoms))
        processes.wait()

    def _save(self, model: torch.nn.Module) -> Path | None:
        if not self.job.processes.is_first:
            return None
        self.watcher.doing("saving")
        return save_result(model, self.recipe, self.job.tokenizer, self.job.folder.path)
