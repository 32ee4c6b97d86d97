"""The formula on a GPU against the trace; the grid is ``benchmarks/accuracy/formula.py --cuda``."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mem_gpt_cli.attention.on_cuda import cuda_kernel
from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.devices.kernels.attention import Shape
from mem_gpt_cli.devices.kernels.build import build_of
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.estimate.cuda import installed_build
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.trace import trace
from mem_gpt_cli.trace.cuda.sdpa_choice import build, choose_kernel

GPT2 = "model.name=gpt2 model.config.n_layer=2"
LLAMA = (
    "model.name=llama-3.2-1b model.config.num_hidden_layers=2 model.config.vocab_size=4096 "
    "model.config.intermediate_size=2048"
)
GENERATION = "workload.batch=2 workload.prompt_tokens=300 workload.new_tokens=4"
TRAINING = "task=training workload.batch=2 workload.seq=256"
RECIPES = (
    f"{GPT2} {GENERATION} device.name=h100",
    f"{GPT2} {TRAINING} device.name=h100",
    f"{GPT2} {TRAINING} device.name=a100-80gb attention.backend=eager optimizer.implementation=loop",
    f"{GPT2} {TRAINING} device.name=rtx-4090 optimizer.implementation=fused checkpointing.policy=full",
    f"{LLAMA} workload.prompt_tokens=64 workload.new_tokens=40 device.name=rtx-4090 model.dtype=bf16",
    f"{LLAMA} {TRAINING} device.name=h100 model.dtype=bf16",
    f"{LLAMA} {TRAINING} device.name=a100-80gb workload.autocast=bf16",
)


@pytest.mark.parametrize("text", RECIPES)
def test_every_phase_is_within_half_a_percent_and_reserved_within_three(text: str) -> None:
    recipe = load_recipe(overrides=text.split())
    formula, traced = estimate(recipe), trace(recipe)
    assert formula.device == traced.device
    for theirs in traced.phases:
        ours = formula.phase(theirs.name)
        assert ours is not None
        assert ours.peak_allocated_bytes == pytest.approx(theirs.peak_allocated_bytes, rel=0.005), theirs.name
        assert ours.reserved_bytes == pytest.approx(theirs.reserved_bytes, rel=0.03), theirs.name
        assert sum(ours.components.values()) == ours.peak_allocated_bytes
        if theirs.name == "load":
            assert ours.components["weights"] == theirs.components["weights"]


def test_a_run_that_does_not_fit_dies_where_the_trace_dies() -> None:
    options = f"{GPT2} {TRAINING} device.name=h100 budget.memory=1000MiB"
    recipe = load_recipe(overrides=options.split())
    formula, traced = (lens(recipe).details["allocator"] for lens in (estimate, trace))
    ours, theirs = formula["out_of_memory"], traced["out_of_memory"]
    assert ours is not None
    assert theirs is not None
    assert ours["phase"] == theirs["phase"]
    assert ours["requested"] == theirs["requested"]
    assert formula["capacity_bytes"] == traced["capacity_bytes"]


def test_the_build_is_that_of_the_installed_torch() -> None:
    assert installed_build() == build() == build_of(torch.__version__)


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LENGTHS = ((1, 1), (1, 40), (64, 64), (3, 40))
HEADS = ((4, 4), (4, 2))
OPTIONS = tuple(product((False, True), (0.0, 0.1, 0.25), (False, True)))


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0"])
@pytest.mark.parametrize("name", ["h100", "b200", "a100-80gb", "rtx-4090", "t4"])
def test_the_kernel_is_the_one_that_the_trace_picks(name: str, version: str) -> None:
    gpu, made_by = find_gpu(name), build_of(version)
    everything = frozenset({"flash", "efficient", "cudnn", "math"})
    for dtype, size in product(DTYPES, (20, 64, 128, 200, 256, 320)):
        for (queries, keys), (heads, key_heads), (masked, dropout, needs_grad) in product(
            LENGTHS, HEADS, OPTIONS
        ):
            if queries not in (1, keys) and not masked:
                continue  # transformers gives a mask then
            q = torch.empty(2, heads, queries, size, dtype=DTYPES[dtype], device="meta")
            k = torch.empty(2, key_heads, keys, size, dtype=DTYPES[dtype], device="meta")
            mask = torch.empty(2, 1, queries, keys, dtype=torch.bool, device="meta") if masked else None
            theirs = choose_kernel(
                gpu,
                q,
                k,
                k,
                mask,
                dropout,
                queries > 1 and not masked,
                heads != key_heads,
                needs_grad,
                allowed=everything,  # type: ignore[arg-type]
                made_by=made_by,
            )
            shape = Shape(2, heads, key_heads, queries, keys, size, size, q.element_size())
            ours = cuda_kernel(
                gpu, made_by, shape, dtype, masked=masked, dropout=dropout, needs_grad=needs_grad
            )
            assert ours == theirs, (dtype, size, queries, keys, heads, key_heads, masked, dropout, needs_grad)
