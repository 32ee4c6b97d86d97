"""``memgpt finetune``: train a model on data, and predict beforehand what that takes."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mem_gpt_cli.cli import answer, console
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.cli.startup import hush_libraries
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.report.sizes import render_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mem_gpt_cli.finetune.job import Job
    from mem_gpt_cli.finetune.run import Watcher
    from mem_gpt_cli.profile.watch import Levels
    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.report.model import MemoryReport

TRAINING_FLAGS = {
    "data": "finetune.data",
    "steps": "finetune.steps",
    "lr": "optimizer.lr",
    "seed": "workload.seed",
}
_OF_INFERENCE = ("task", "prompt-tokens", "new-tokens", "kv-cache")


@takes_recipe(flags=TRAINING_FLAGS, without=_OF_INFERENCE)
def finetune(
    request: Request,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder of the run: its log, checkpoints and result.", metavar="FOLDER"
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, bit for bit as if it never stopped."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Predict the memory, and end with 3 if it does not fit.")
    ] = False,
) -> None:
    """Fine-tune a model on texts, completions or chats: whole, by LoRA, or by QLoRA.

    Predicts the memory first and refuses what does not fit; keeps checkpoints, and goes on after a kill.
    """
    hush_libraries()
    recipe = request._replace(flags={**request.flags, "task": "training"}).recipe()
    if dry_run:
        if resume:
            raise UsageError("--resume goes on with a run, and --dry-run runs nothing: leave one of them out")
        _predict(request, recipe, out)
        return
    if out is None:
        raise UsageError("a fine-tune needs a folder for its result: add --out FOLDER, or --dry-run")
    _train(request, recipe, out, resume)


def _predict(request: Request, recipe: Recipe, out: Path | None) -> None:
    from mem_gpt_cli.finetune.plan import check_recipe, plan
    from mem_gpt_cli.finetune.prediction import device_here, limits_of, predict, sized
    from mem_gpt_cli.finetune.processes import Processes
    from mem_gpt_cli.finetune.train import refuse_at_once
    from mem_gpt_cli.report import table
    from mem_gpt_cli.report.limits import refuse_too_large

    check_recipe(recipe)
    if out is not None:
        refuse_at_once(recipe, out)
    planned = plan(recipe, Processes())
    looked_at = sized(planned.recipe, planned.steps)
    prediction = predict(looked_at)
    report = answer.advised(request, looked_at, prediction.report, prediction.formula)

    def tables() -> list[RenderableType]:
        side_by_side: dict[str, MemoryReport | None] = {"estimate": prediction.formula, report.lens: report}
        return [table.summary(report), table.comparison(side_by_side, titled=False), table.places(report)]

    answer.give(request, report, tables)
    if prediction.caveat:
        console.warn(prediction.caveat)
    refuse_too_large(report, limits_of(recipe, device_here(recipe)))


def _train(request: Request, recipe: Recipe, out: Path, resume: bool) -> None:
    from transformers.utils import logging

    from mem_gpt_cli.finetune.interrupts import Interrupted
    from mem_gpt_cli.finetune.job import prepare
    from mem_gpt_cli.finetune.processes import Processes
    from mem_gpt_cli.finetune.train import refuse_at_once, train

    logging.disable_progress_bar()
    processes = Processes.join(cpu=recipe.device.type == "cpu")
    if processes.is_first:
        refuse_at_once(recipe, out, resume=resume, csv=request.csv)
    job = prepare(recipe, out, processes)
    if processes.is_first:
        _say_what_begins(job)
    try:
        with _progress(job) as watcher:
            account = train(job, watcher, resume=resume)
    except Interrupted as stopped:
        if processes.is_first:
            _say(
                f"interrupted: {stopped.step} of {stopped.steps} steps are kept: --resume goes on from there"
            )
        raise
    except KeyboardInterrupt:
        if processes.is_first:
            _say("interrupted: what checkpoints hold is kept: --resume goes on from there")
        raise
    if account is not None:
        _answer(request, account)


def _say(sentence: str) -> None:
    console.people().print(sentence, markup=False, soft_wrap=True)


def _say_what_begins(job: Job) -> None:
    from mem_gpt_cli.finetune.prediction import Prediction

    held_out = len(job.data.held_out) if job.data.held_out else 0
    _say(
        f"{job.source.name}: {job.steps} steps of {job.rows_a_step} x {job.recipe.lengths.seq} tokens; "
        f"{len(job.data.training)} sequences to learn, {held_out} to evaluate on"
    )
    if isinstance(job.prediction, Prediction):
        report = job.prediction.report
        _say(
            f"predicted: tensors of {render_bytes(report.allocated_bytes)} at the peak, in {report.peak.name}"
        )
        if job.prediction.caveat:
            console.warn(job.prediction.caveat)
    else:
        console.warn(f"memory is not predicted: {job.prediction}")
    for note in job.notes:
        console.warn(note)


@contextmanager
def _progress(job: Job) -> Iterator[Watcher]:
    """A live line on a terminal; where stderr is none, a line for about every twentieth step."""
    from mem_gpt_cli.finetune.prediction import Prediction
    from mem_gpt_cli.profile.process import ProcessPeak

    predicted = None
    if isinstance(job.prediction, Prediction):
        predicted = job.prediction.report.allocated_bytes
    process = ProcessPeak()
    process.reset()
    before = process.read()
    with console.progress() as bar:
        task = bar.add_task("", total=job.steps, visible=job.processes.is_first)

        class Following:
            last = ""

            def doing(self, what: str) -> None:
                bar.update(task, description=f"{self.last}{what}")

            def step(self, line: dict[str, Any], steps: int, levels: Levels) -> None:
                told = _told(line, levels, before, predicted)
                self.last = f"{told}, "
                bar.update(task, completed=line["step"], description=told)
                if bar.disable and (line["step"] in (1, steps) or line["step"] % max(1, steps // 20) == 0):
                    _say(f"[{line['step']}/{steps}] {told}")

            def note(self, sentence: str) -> None:
                console.warn(sentence)

        yield Following()


def _told(line: dict[str, Any], levels: Levels, before: int | None, predicted: int | None) -> str:
    """One step in words; beside predicted tensors stand a GPU's, or what the process grew by since ``before``
    it had a model."""
    speed = line["tokens"] / line["seconds"]
    parts = [f"loss {line['loss']:.4f}", f"lr {line['lr']:.2e}", f"{speed:,.0f} tokens/s"]
    if levels.allocated_bytes is not None:
        parts.append(f"memory {render_bytes(levels.allocated_bytes)}")
    elif levels.process_bytes is not None and before is not None:
        parts.append(f"process grown by {render_bytes(max(0, levels.process_bytes - before))}")
    if predicted is not None:
        parts.append(f"tensors predicted {render_bytes(predicted)}")
    return ", ".join(parts)


def _answer(request: Request, account: dict[str, Any]) -> None:
    if request.csv:
        from mem_gpt_cli.finetune.row import FINETUNE_COLUMNS, finetune_row
        from mem_gpt_cli.report.csv import append_row

        append_row(request.csv, FINETUNE_COLUMNS, finetune_row(account))
    if request.json:
        print(json_text.dumps(account, indent=2, ensure_ascii=False))
        return
    console.data().print(summary_table(account))
    print(f"the {'adapter' if account['method'] != 'full' else 'model'} is in {account['result']}")


def summary_table(account: dict[str, Any]) -> RenderableType:
    """What a run took and what became of it, for a person."""
    from rich.table import Table

    memory, perplexity, speed = account["memory"], account["perplexity"], account["speed"]
    found = Table(
        title=f"{account['model']}: {account['method']}, {account['steps']} steps", title_justify="left"
    )
    found.add_column("")
    found.add_column("", justify="right")
    found.add_row("loss", f"{account['loss']['first']:.4f} -> {account['loss']['last']:.4f}")
    if perplexity is not None:
        told = [perplexity[when] for when in ("before", "after")]
        change = " -> ".join("no number" if value is None else f"{value:.2f}" for value in told)
        found.add_row(f"perplexity of {perplexity['tokens']:,} held-out tokens", change)
    found.add_row("parameters trained", f"{account['parameters_trained']:,}")
    found.add_row("tokens/s", f"{speed['tokens_per_s']:,.0f}")
    by = f" ({memory['predicted_by']})" if memory["predicted_by"] else ""
    found.add_row(f"tensors predicted{by}", render_bytes(memory["predicted_bytes"]) or "unavailable")
    found.add_row("tensors measured", render_bytes(memory["measured_bytes"]) or "unavailable")
    found.add_row("the process at its peak", render_bytes(memory["process_bytes"]) or "unavailable")
    found.add_row("of which before the model", render_bytes(memory["process_before_bytes"]) or "unavailable")
    return found
