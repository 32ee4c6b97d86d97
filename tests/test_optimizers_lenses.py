"""Optimizers in all three lenses: the trace against what is measured, the formula against the trace."""

from __future__ import annotations

from typing import Any

import pytest
from profiled import GPT2, LLAMA, small_recipe

import mem_gpt_cli as memgpt
from mem_gpt_cli.optimizers.bitsandbytes_steps import MAP_BYTES
from mem_gpt_cli.optimizers.build import listed
from mem_gpt_cli.optimizers.notes import notes
from mem_gpt_cli.report.model import MemoryReport, Phase

WORKLOAD = {"batch": 1, "seq": 16}
SOME_BYTES = 4096
FLAT_GPT2 = {**GPT2, "config": {**GPT2["config"], "n_layer": 2}}
FLAT_LLAMA = {**LLAMA, "config": {**LLAMA["config"], "num_hidden_layers": 2}}
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2 sgd": (FLAT_GPT2, {"name": "sgd", "momentum": 0.9, "implementation": "foreach"}),
    "llama adafactor": (FLAT_LLAMA, {"name": "adafactor"}),
    "gpt2 adamw_8bit": (FLAT_GPT2, {"name": "adamw_8bit"}),
    "llama lion_8bit": (FLAT_LLAMA, {"name": "lion_8bit"}),
    "gpt2 galore": (FLAT_GPT2, {"name": "galore", "rank": 16}),
    "llama galore 8 bits": (FLAT_LLAMA, {"name": "galore", "rank": 40, "bits": 8}),
}


@pytest.mark.parametrize(("model", "optimizer"), MEASURED.values(), ids=MEASURED)
def test_a_step_is_traced_as_it_is_measured(model: dict[str, Any], optimizer: dict[str, Any]) -> None:
    recipe = small_recipe(model, "training", optimizer=optimizer, workload=WORKLOAD)
    formula, traced = memgpt.estimate(recipe), memgpt.trace(recipe)
    measured = memgpt.profile(recipe, passes="memory")
    for phase in traced.phases:
        other = _phase(measured, phase.name)
        assert phase.peak_allocated_bytes == pytest.approx(other.peak_allocated_bytes, abs=SOME_BYTES)
    step, on_paper = _phase(traced, "optimizer_step"), _phase(formula, "optimizer_step")
    assert on_paper.peak_allocated_bytes == pytest.approx(step.peak_allocated_bytes, abs=MAP_BYTES + 64)
    for one in (_phase(measured, "optimizer_step"), on_paper):
        assert one.components["optimizer_state"] == step.components["optimizer_state"]


def test_formula_and_trace_agree_on_a_gpu() -> None:
    wide = {**GPT2, "config": {**GPT2["config"], "n_embd": 256}}
    recipe = small_recipe(
        wide, "training", optimizer={"name": "paged_adamw_8bit"}, workload=WORKLOAD, device={"name": "h100"}
    )
    formula, traced = memgpt.estimate(recipe), memgpt.trace(recipe)
    for phase in traced.phases:
        other = _phase(formula, phase.name)
        assert phase.peak_allocated_bytes == pytest.approx(other.peak_allocated_bytes, abs=2 * SOME_BYTES)
        assert phase.reserved_bytes == other.reserved_bytes
    for report in (formula, traced):
        assert any("managed memory" in warning for warning in report.warnings)


def test_what_the_formula_leaves_out_is_said() -> None:
    for optimizer, device in (("adafactor", "h100"), ("galore", "h100")):
        recipe = small_recipe(GPT2, "training", optimizer={"name": optimizer}, device={"name": device})
        assert any("--trace" in w or "not counted" in w for w in memgpt.estimate(recipe).warnings)


def test_managed_memory_is_no_state_of_torchs() -> None:
    wide = {**GPT2, "config": {**GPT2["config"], "n_embd": 256}}
    states = {}
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        recipe = small_recipe(
            wide, "training", optimizer={"name": name}, workload=WORKLOAD, device={"name": "h100"}
        )
        states[name] = _phase(memgpt.estimate(recipe), "optimizer_step").components["optimizer_state"]
    assert states["paged_adamw_8bit"] < states["adamw_8bit"] / 3


def test_nothing_to_project_is_said() -> None:
    import torch

    recipe = small_recipe(GPT2, "training", optimizer={"name": "galore"})
    (sentence,) = notes(recipe, listed(torch.nn.Linear(4, 4)))
    assert "nothing is projected" in sentence


def _phase(report: MemoryReport, name: str) -> Phase:
    return next(phase for phase in report.phases if phase.name == name)
