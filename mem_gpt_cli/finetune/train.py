"""``train``: a job carried out in its folder, and the account of it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import GateError, UsageError
from mem_gpt_cli.finetune.account import Account, account_of, read_account
from mem_gpt_cli.finetune.folder import RunFolder, description_of
from mem_gpt_cli.finetune.job import Job
from mem_gpt_cli.finetune.prediction import Prediction
from mem_gpt_cli.finetune.row import FINETUNE_COLUMNS
from mem_gpt_cli.finetune.run import Finished, Run, Watcher
from mem_gpt_cli.profile.exhaustion import exhausted, ran_out_of_memory
from mem_gpt_cli.quantization.saved import as_saved
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.csv import refuse_other_columns
from mem_gpt_cli.report.sizes import render_bytes


def refuse_at_once(recipe: Recipe, out: Path, *, resume: bool = False, csv: Path | None = None) -> None:
    """Refuse what needs no data to be refused, before any is read.

    Args:
        recipe: how to train.
        out: the folder of the run.
        resume: whether to go on with what is there.
        csv: the file that a row of the run is to be appended to.

    Raises:
        UsageError: for a folder that is not free or holds a run by another recipe, a table of other columns,
            or a place that nothing can be written to.
    """
    if csv is not None:
        _refuse_unwritable("--csv", csv)
        refuse_other_columns(csv, FINETUNE_COLUMNS)
    _refuse_unwritable("--out", out)
    folder = RunFolder(out, recipe.finetune.keep_checkpoints)
    began = folder.asked if out.is_dir() else None
    if began is not None:
        with folder.alone():
            folder.refuse_unless(began | description_of(as_saved(recipe, source_of(recipe))), resume=resume)
    elif out.is_dir():
        folder.refuse_unless({}, resume=resume)
    elif out.exists():
        raise UsageError(f"--out {out} is a file: name a folder")


def _refuse_unwritable(flag: str, path: Path) -> None:
    there = next(one for one in (path, *path.absolute().parents) if os.access(one, os.F_OK))
    if there != path and not there.is_dir():
        raise UsageError(f"{flag} {path} cannot be: {there} is no folder: name another place")
    if not os.access(there, os.W_OK):
        raise UsageError(f"{flag} {path} cannot be written to: permission denied: name another place")


def train(job: Job, watcher: Watcher, *, resume: bool = False) -> Account | None:
    """Carry a job out, from where its folder's last process left off.

    Args:
        job: of ``prepare``.
        watcher: told of each step.
        resume: go on; without it the folder must be free.

    Returns:
        The account, ``None`` in every process but the first.

    Raises:
        UsageError: for a folder that is not free, or holds another run.
        Interrupted: after a signal.
        GateError: if memory runs out, or the loss or a weight is no number any more.
        EnvironmentUnavailableError: where the disk does not take what is written.
    """
    folder, first = job.folder, job.processes.is_first
    with folder.alone() if first else nullcontext():
        if first:
            folder.refuse_unless(job.asked, resume=resume)
        job.processes.wait()
        found = read_account(folder)
        if found is not None:
            return found if first else None
        if first:
            folder.begin(job.asked)
        finished = _carried_out(job, watcher)
        if not first:
            return None
        account = account_of(job, finished)
        folder.result = account
        return account


def _carried_out(job: Job, watcher: Watcher) -> Finished:
    run = Run(job, watcher)
    try:
        return run.carry_out()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        told = ""
        if isinstance(job.prediction, Prediction):
            report = job.prediction.report
            told = f"; {render_bytes(report.allocated_bytes)} in {report.peak.name} were predicted"
        raise GateError(f"{exhausted(error, run.phases.current)}{told}") from error
