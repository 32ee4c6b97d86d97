"""The account of a run, as it is told and as it is read again from the files of a folder."""

# No `from __future__ import annotations`: pydantic would compile each annotation again.

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.finetune.folder import SCHEMA_VERSION, RunFolder
from mem_gpt_cli.finetune.prediction import Prediction
from mem_gpt_cli.finetune.row import finetune_row
from mem_gpt_cli.recipe.writing import as_run

if TYPE_CHECKING:
    from mem_gpt_cli.finetune.job import Job
    from mem_gpt_cli.finetune.run import Finished

Account = dict[str, Any]
"""What ``--json`` prints; docs/finetune.md has its keys."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Loss(_Part):
    first: FiniteFloat
    last: FiniteFloat


class _Evaluation(_Part):
    perplexity: FiniteFloat | None
    loss: FiniteFloat | None
    tokens: int


class _Before(_Part):
    evaluation: _Evaluation | None


class _Perplexity(_Part):
    before: FiniteFloat | None
    after: FiniteFloat | None
    tokens: int


class _Speed(_Part):
    tokens: int
    seconds: FiniteFloat
    tokens_per_s: FiniteFloat


class _Memory(_Part):
    predicted_bytes: int | None
    predicted_phase: str | None
    predicted_by: str | None
    measured_bytes: int | None
    reserved_bytes: int | None
    process_bytes: int | None
    process_before_bytes: int | None


class _Data(_Part):
    name: str
    documents: int
    sequences: int
    held_out_sequences: int
    epochs: FiniteFloat


class _Whole(_Part):
    schema_version: Literal[1]
    command: Literal["finetune"]
    model: str
    method: str
    out: str
    result: str
    steps: int
    resumed_from: int | None
    parameters_trained: int
    loss: _Loss
    perplexity: _Perplexity | None
    speed: _Speed
    memory: _Memory
    data: _Data
    processes: int
    notes: list[str]
    recipe: dict[str, Any]


def read_account(folder: RunFolder) -> Account | None:
    """The account that a run left; ``None`` where it is not over.

    Raises:
        UsageError: for a file that holds something else.
    """
    found = folder.result
    if found is not None:
        path = folder.path / "result.json"
        _hold_to(_Whole, found, path)
        try:
            finetune_row(found)
        except (KeyError, TypeError) as error:
            raise UsageError(_SPOILT.format(path, "recipe")) from error
    return found


def read_before(folder: RunFolder) -> dict[str, Any] | None:
    """The evaluation before the first step, under the key ``evaluation``; ``None`` where none is noted.

    Raises:
        UsageError: for a file that holds something else.
    """
    found = folder.before
    if found is not None:
        _hold_to(_Before, found, folder.path / "before.json")
    return found


_SPOILT = "{} is not as a run left it ({}): delete it, and --resume makes it anew"


def _hold_to(kind: type[BaseModel], found: Account, path: Path) -> None:
    try:
        kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(_SPOILT.format(path, ".".join(str(step) for step in first["loc"]))) from error


def epochs_after(job: "Job", steps: int) -> float:
    """How often so many steps have gone through the data."""
    return round(steps * job.rows_a_step / len(job.data.training), 4)


def account_of(job: "Job", finished: "Finished") -> Account:
    """What is to be told of a run that is over."""
    sums = finished.sums
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "finetune",
        "model": job.source.name,
        "method": _method(job),
        "out": str(job.folder.path),
        "result": str(finished.result),
        "steps": job.steps,
        "resumed_from": finished.resumed_from,
        "parameters_trained": finished.trained_parameters,
        "loss": {"first": sums.first_loss, "last": sums.last_loss},
        "perplexity": _perplexity(finished),
        "speed": {
            "tokens": sums.tokens,
            "seconds": round(sums.seconds, 3),
            "tokens_per_s": round(sums.tokens / sums.seconds, 3),
        },
        "memory": _memory(job, finished),
        "data": {
            "name": job.recipe.finetune.data,
            "documents": job.data.documents,
            "sequences": len(job.data.training),
            "held_out_sequences": len(job.data.held_out) if job.data.held_out else 0,
            "epochs": epochs_after(job, job.steps),
        },
        "processes": job.processes.count,
        "notes": [*job.notes, *finished.notes],
        "recipe": as_run(job.recipe),
    }


def _method(job: "Job") -> str:
    kind = job.recipe.adapters.kind
    return "full" if kind == "none" else kind


def _perplexity(finished: "Finished") -> dict[str, Any] | None:
    if finished.before is None or finished.after is None:
        return None
    return {
        "before": finished.before["perplexity"],
        "after": finished.after["perplexity"],
        "tokens": finished.after["tokens"],
    }


def _memory(job: "Job", finished: "Finished") -> dict[str, Any]:
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
