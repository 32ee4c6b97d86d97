"""A fine-tune, made out before anything is trained: whatever can be refused is refused here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from mem_gpt_cli._version import __version__
from mem_gpt_cli.attention.backend import attention_note
from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError
from mem_gpt_cli.finetune.data import Data, named_data
from mem_gpt_cli.finetune.fingerprint import weights_fingerprint
from mem_gpt_cli.finetune.folder import RunFolder, description_of
from mem_gpt_cli.finetune.plan import check_recipe, plan
from mem_gpt_cli.finetune.prediction import Prediction, limits_of, sized, try_to_predict
from mem_gpt_cli.finetune.processes import Processes
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.profile.device import Device, find_device
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.limits import refuse_too_large
from mem_gpt_cli.workload.threads import intra_op_threads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """What is trained, on what, where, and how far; ``prediction`` may be a sentence: why there is none."""

    recipe: Recipe
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    data: Data
    device: Device
    folder: RunFolder
    steps: int
    processes: Processes
    prediction: Prediction | str
    asked: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def rows_a_step(self) -> int:
        """Sequences that all processes learn from in a step."""
        workload = self.recipe.workload
        return workload.batch * workload.accumulate * self.processes.count


def prepare(recipe: Recipe, out: Path, processes: Processes) -> Job:
    """Everything that a run needs before it has a model.

    Raises:
        RecipeError: for options that cannot be trained with.
        UsageError: for data, a schedule or a length that cannot be.
        GateError: if it does not fit the budget or the device.
        EnvironmentUnavailableError: without the device or a tokenizer.
    """
    check_recipe(recipe)
    named_data(recipe)
    device = _local(find_device(recipe.device, dry_run="--dry-run"), processes)
    planned = plan(recipe, processes)
    recipe, source, tokenizer = planned.recipe, planned.source, planned.tokenizer
    data, steps = planned.data, planned.steps
    if tokenizer is None or data is None or steps is None:
        raise EnvironmentUnavailableError(
            f"{source.name} has no tokenizer here, because only its config is at hand: give the folder of "
            "the whole model"
        )
    prediction = try_to_predict(sized(recipe, steps))
    if isinstance(prediction, Prediction):
        refuse_too_large(prediction.report, limits_of(recipe, device))
    asked = description_of(
        recipe,
        data=data.digests(),
        weights=weights_fingerprint(source, recipe),
        steps=steps,
        processes=processes.count,
        threads=_threads(recipe),
        versions=_versions(),
    )
    notes = (*source.notes, *attention_note(planned.meta, recipe), *data.notes)
    folder = RunFolder(out, recipe.finetune.keep_checkpoints)
    return Job(recipe, source, tokenizer, data, device, folder, steps, processes, prediction, asked, notes)


def _local(device: Device, processes: Processes) -> Device:
    """The GPU that is this process's own, where several share a machine.

    Raises:
        UsageError: where the recipe names one GPU for all of them.
    """
    if processes.count == 1 or device.torch_device.type == "cpu":
        return device
    from mem_gpt_cli.recipe.schema import Device as Section

    if device.torch_device.index != torch.cuda.current_device():
        raise UsageError("device.name: each process has a GPU of its own: write device: cuda")
    return find_device(Section(name=f"cuda:{processes.local_rank}"))


def _threads(recipe: Recipe) -> int:
    with intra_op_threads(recipe.device.threads):
        return torch.get_num_threads()


def _versions() -> dict[str, str]:
    return {"memgpt": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
