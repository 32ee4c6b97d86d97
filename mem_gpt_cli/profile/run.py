"""One real run of a recipe's workload, for whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from mem_gpt_cli.adapters.apply import adapter_tensors
from mem_gpt_cli.checkpointing.offload import details_of
from mem_gpt_cli.model import ModelSource
from mem_gpt_cli.profile.device import Device
from mem_gpt_cli.quantization.modules import stored_tensors
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import ModelSummary
from mem_gpt_cli.workload import Inference, Observer, Paged, page_details, workload_of
from mem_gpt_cli.workload.autocast import autocast
from mem_gpt_cli.workload.build import build

WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Job:
    """What is measured, and where.

    ``notes`` are what a reader of the report should be told; ``details`` what a run says of itself.
    """

    recipe: Recipe
    source: ModelSource
    device: Device
    vocabulary: int
    logits_width: int | None
    model: ModelSummary
    notes: tuple[str, ...]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Phases that one run enters: the steps of its progress."""
        workload = workload_of(self.recipe)
        if isinstance(workload, Inference):
            return 2 + workload.decode_steps
        if isinstance(workload, Paged):
            return 2 + workload.steps
        work = self.recipe.workload
        return 1 + work.steps * (2 * work.accumulate + 1)


def run(
    job: Job,
    observer: Observer,
    *,
    warm_up: bool = False,
    built: Callable[[torch.nn.Module], None] | None = None,
) -> None:
    """Build the model, make the data and run the workload once; nothing is left behind.

    Args:
        job: what to run.
        observer: who watches.
        warm_up: run a few tokens first, outside any phase, so that what happens once a process (threads,
            kernels' caches) is in no duration.
        built: called with the model once it is there.
    """
    recipe = job.recipe
    torch.manual_seed(recipe.workload.seed)
    workload = workload_of(recipe)
    with observer.phase("load"):
        model = build(job.source, recipe, job.device.torch_device)
        observer.mark("weights", stored_tensors(model))
        observer.mark("adapters", adapter_tensors(model))
        tokens = random_tokens(job, workload.lengths.prompt)
    if built is not None:
        built(model)
    workload.prepare(model, observer)
    if warm_up:
        with torch.no_grad(), autocast(recipe, tokens.device):
            model(input_ids=random_tokens(job, WARM_UP_TOKENS), use_cache=False)
    workload.run(model, tokens, observer)
    job.details.update(details_of(model))
    if isinstance(workload, Paged):
        job.details.update(page_details(workload, model))


def random_tokens(job: Job, length: int) -> torch.Tensor:
    """``[batch, length]`` tokens that depend on ``workload.seed`` alone."""
    device = job.device.torch_device
    generator = torch.Generator(device).manual_seed(job.recipe.workload.seed)
    shape = (job.recipe.workload.batch, length)
    return torch.randint(job.vocabulary, shape, generator=generator, device=device)
