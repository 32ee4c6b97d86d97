"""A fine-tune, made out before anything is trained: whatever can be refused is refused here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from mem_gpt_cli._version import __version__
from mem_gpt_cli.attention.backend import attention_note
from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import EnvironmentUnavailableError, RecipeError, UsageError
from mem_gpt_cli.finetune.data import Data, load_data
from mem_gpt_cli.finetune.fingerprint import weights_fingerprint
from mem_gpt_cli.finetune.folder import RunFolder, description_of
from mem_gpt_cli.finetune.prediction import Prediction, refuse_too_large, try_to_predict
from mem_gpt_cli.finetune.processes import Processes
from mem_gpt_cli.finetune.schedule import check_schedule
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.profile.device import Device, find_device
from mem_gpt_cli.profile.positions import refuse_beyond_positions
from mem_gpt_cli.quantization.saved import as_saved
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.build import build_on_meta
from mem_gpt_cli.workload.reading import load_tokenizer
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
    device = _local(find_device(recipe.device), processes)
    source = source_of(recipe)
    recipe = as_saved(recipe, source)
    meta = build_on_meta(source, recipe)
    refuse_beyond_positions(source, recipe, meta)
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise EnvironmentUnavailableError(
            f"{source.name} has no tokenizer here, because only its config is at hand: give the folder of "
            "the whole model"
        )
    data = load_data(recipe, tokenizer)
    steps = recipe.finetune.steps or _one_pass(recipe, data, processes)
    check_schedule(recipe, steps)
    prediction = try_to_predict(recipe)
    if isinstance(prediction, Prediction):
        refuse_too_large(recipe, prediction, device.summary.total_bytes)
    asked = description_of(
        recipe,
        data=data.digests(),
        weights=weights_fingerprint(source, recipe),
        steps=steps,
        processes=processes.count,
        threads=_threads(recipe),
        versions=_versions(),
    )
    notes = (*source.notes, *attention_note(meta, recipe), *data.notes)
    folder = RunFolder(out, recipe.finetune.keep_checkpoints)
    return Job(recipe, source, tokenizer, data, device, folder, steps, processes, prediction, asked, notes)


def check_recipe(recipe: Recipe) -> None:
    """Pass a recipe that can be trained with.

    Raises:
        RecipeError: for one that cannot, each reason once.
    """
    refuse_unavailable(recipe, "profile")
    if recipe.workload.autocast == "fp16":
        raise RecipeError(
            "workload.autocast: gradients of fp16 products vanish unless the loss is scaled, which this step "
            "does not do: choose bf16, or none",
            position_of(("workload", "autocast"), recipe.text),
        )
    if recipe.model.dtype == "fp16":
        raise RecipeError(
            "model.dtype: gradients of fp16 weights vanish unless the loss is scaled, which this step does "
            "not do: choose fp32 (with workload.autocast: bf16) or bf16",
            position_of(("model", "dtype"), recipe.text),
        )


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


def _one_pass(recipe: Recipe, data: Data, processes: Processes) -> int:
    rows = recipe.workload.batch * recipe.workload.accumulate * processes.count
    return max(1, -(-len(data.training) // rows))


def _threads(recipe: Recipe) -> int:
    with intra_op_threads(recipe.device.threads):
        return torch.get_num_threads()


def _versions() -> dict[str, str]:
    return {"memgpt": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
