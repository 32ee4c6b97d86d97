"""One run of the workload on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mem_gpt_cli.adapters.apply import adapter_tensors
from mem_gpt_cli.checkpointing.offload import details_of
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.kv_cache.cost import grows_in_leaps
from mem_gpt_cli.kv_cache.storage import cache_tensors
from mem_gpt_cli.ledger import EventLog, Ledger
from mem_gpt_cli.model import ModelSource
from mem_gpt_cli.model.facts import logits_width
from mem_gpt_cli.quantization.modules import stored_tensors
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.trace.cuda.births import BIRTHS
from mem_gpt_cli.trace.cuda.buffers import CudaKernels
from mem_gpt_cli.trace.cuda.steering import like_cuda
from mem_gpt_cli.trace.faithful import like_the_real_run, unknown_tokens
from mem_gpt_cli.trace.kernels import CpuKernels
from mem_gpt_cli.trace.optimizer_kernels import optimizer_without_data
from mem_gpt_cli.trace.routing import Routing, Scenario, routing
from mem_gpt_cli.workload import Inference, Paged, workload_of
from mem_gpt_cli.workload.build import load_model

RECORDED_STEPS = 1
"""Decode steps recorded at either end of a shortened generation."""


@dataclass(frozen=True)
class FakeRun:
    """What a fake run leaves: its events, how many kernels were too large to ask for their scratch, and
    who asked about data.

    ``paged`` is the workload where it kept count of pages; ``details`` are what else a run says of itself.
    """

    log: EventLog
    unasked_kernels: int
    routing: Routing | None = None
    paged: Paged | None = None
    details: Mapping[str, int] = field(default_factory=dict)


def fake_run(
    model: torch.nn.Module,
    source: ModelSource,
    recipe: Recipe,
    *,
    every_step: bool,
    scenario: Scenario | None = None,
    gpu: Gpu | None = None,
) -> FakeRun:
    """Run the recipe's workload on fake tensors and record its memory.

    Args:
        model: the model on ``meta``; it is given (fake) memory here, as the first thing that is recorded.
        source: which model it is.
        recipe: the options and the sizes.
        every_step: run each decode step; else only those at the two ends of the generation.
        scenario: what to answer where the model asks about data; without one, such a question is an error.
        gpu: run as on this GPU; ``None``: as on this CPU. The fake tensors are the CPU's in both cases.
    """
    cpu = CpuKernels()
    oracle: Routing | None = None
    with FakeTensorMode(allow_non_fake_inputs=True), like_the_real_run():
        ledger = Ledger(
            logits_width=logits_width(model),
            kernel_buffers=CudaKernels(gpu) if gpu else cpu,
            births=BIRTHS if gpu else None,
        )
        ledger.modules.name(model)
        workload = workload_of(recipe)
        with ExitStack() as stack:
            if scenario is not None:
                oracle = stack.enter_context(routing(scenario, ledger.modules.current))
            if gpu is not None:
                stack.enter_context(like_cuda(gpu, ledger))
            stack.enter_context(optimizer_without_data(recipe, ledger))
            if isinstance(workload, Paged):
                stack.enter_context(unknown_tokens())
            stack.enter_context(ledger)
            with ledger.phase("load"):
                load_model(
                    model, source, recipe, torch.device("cpu"), real=False, watch=ledger.modules.inside
                )
                ledger.mark("weights", stored_tensors(model))
                ledger.mark("adapters", adapter_tensors(model))
                tokens = torch.zeros(recipe.workload.batch, workload.lengths.prompt, dtype=torch.long)
            workload.prepare(model, ledger)
            if isinstance(workload, Inference) and not (every_step or grows_in_leaps(recipe)):
                ends_only(workload, model, tokens, ledger)
            else:
                workload.run(model, tokens, ledger)
    cpu.probe.answer(ledger.log)
    paged = workload if isinstance(workload, Paged) else None
    return FakeRun(ledger.log, cpu.probe.too_large, oracle, paged, details_of(model))


def ends_only(workload: Inference, model: torch.nn.Module, tokens: torch.Tensor, ledger: Ledger) -> None:
    """The prefill and the first and last decode steps.

    Between them the cache only grows, so it is made anew by one unrecorded prefill of the longer sequence;
    one unrecorded decode step after it brings a sliding window's buffers to the size that they keep.
    """
    if workload.decode_steps <= 2 * RECORDED_STEPS:
        workload.run(model, tokens, ledger)
        return
    state = workload.prefill(model, tokens, ledger)
    for _ in range(RECORDED_STEPS):
        state = workload.decode(model, state, ledger)
    del state
    batch, prompt = tokens.shape
    with ledger.paused():
        longer = torch.zeros(batch, prompt + workload.decode_steps - RECORDED_STEPS - 1, dtype=torch.long)
        state = workload.prefill(model, longer, ledger)
        state = workload.decode(model, state, ledger)
    ledger.mark("activations", [state.sequence, state.mask])
    ledger.mark("kv_cache", cache_tensors(state.cache))
    for _ in range(RECORDED_STEPS):
        state = workload.decode(model, state, ledger)
