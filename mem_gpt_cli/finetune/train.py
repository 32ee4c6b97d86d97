"""``train``: a job carried out in its folder, and the account of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from mem_gpt_cli.errors import GateError
from mem_gpt_cli.finetune.folder import SCHEMA_VERSION
from mem_gpt_cli.finetune.job import Job
from mem_gpt_cli.finetune.prediction import Prediction
from mem_gpt_cli.finetune.run import Finished, Run, Watcher
from mem_gpt_cli.profile.exhaustion import exhausted, ran_out_of_memory
from mem_gpt_cli.recipe.writing import as_run
from mem_gpt_cli.report.sizes import render_bytes

Account = dict[str, Any]
"""What ``--json`` prints; docs/finetune.md has its keys."""


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
        GateError: if memory runs out, or the loss is no number any more.
    """
    folder, first = job.folder, job.processes.is_first
    with folder.alone() if first else nullcontext():
        if first:
            folder.refuse_unless(job.asked, resume=resume)
        job.processes.wait()
        found = folder.result
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


def account_of(job: Job, finished: Finished) -> Account:
    """What is to be told of a run that is over."""
    steps = job.folder.log.steps()
    tokens, seconds = sum(step["tokens"] for step in steps), sum(step["seconds"] for step in steps)
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "finetune",
        "model": job.source.name,
        "method": _method(job),
        "out": str(job.folder.path),
        "result": str(finished.result),
        "steps": len(steps),
        "resumed_from": finished.resumed_from,
        "parameters_trained": finished.trained_parameters,
        "loss": {"first": steps[0]["loss"], "last": steps[-1]["loss"]},
        "perplexity": _perplexity(finished),
        "speed": {"tokens": tokens, "seconds": round(seconds, 3), "tokens_per_s": round(tokens / seconds, 3)},
        "memory": _memory(job, finished),
        "data": {
            "name": job.recipe.finetune.data,
            "documents": job.data.documents,
            "sequences": len(job.data.training),
            "held_out_sequences": len(job.data.held_out) if job.data.held_out else 0,
            "epochs": steps[-1]["epoch"],
        },
        "processes": job.processes.count,
        "notes": list(job.notes),
        "recipe": as_run(job.recipe),
    }


def _method(job: Job) -> str:
    kind = job.recipe.adapters.kind
    return "full" if kind == "none" else kind


def _perplexity(finished: Finished) -> dict[str, Any] | None:
    if finished.before is None or finished.after is None:
        return None
    return {
        "before": finished.before["perplexity"],
        "after": finished.after["perplexity"],
        "tokens": finished.after["tokens"],
    }


def _memory(job: Job, finished: Finished) -> dict[str, Any]:
    """Predicted and measured; ``measured_bytes`` is of tensors, by the device's allocator."""
    levels = finished.levels
    measured = finished.steps_peak if levels.allocated_bytes is None else levels.allocated_bytes
    found: dict[str, Any] = {
        "predicted_bytes": None,
        "predicted_phase": None,
        "predicted_by": None,
        "measured_bytes": measured,
        "reserved_bytes": levels.reserved_bytes,
        "process_bytes": levels.process_bytes,
        "process_before_bytes": finished.levels_before.process_bytes,
    }
    if isinstance(job.prediction, Prediction):
        report = job.prediction.report
        found["predicted_bytes"] = report.allocated_bytes
        found["predicted_phase"] = report.peak.name
        found["predicted_by"] = report.lens
    return found
