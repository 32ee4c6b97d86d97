"""A trace for a GPU: steered on fake CPU tensors, replayed through the allocator, judged against the card."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from mem_gpt_cli.allocator.settings import AllocatorSettings
from mem_gpt_cli.devices.calibration import Calibration
from mem_gpt_cli.devices.card import Card
from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.errors import EnvironmentUnavailableError, RecipeError
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import MemoryReport
from mem_gpt_cli.trace import trace

GPT2 = ("model.name=gpt2", "model.config={n_layer: 2}", "workload.seq=64")
TRAINING = (*GPT2, "task=training")
INFERENCE = (*GPT2, "workload.new_tokens=4")
COUNTERS = 2 * 12 + 4
"""Trainable tensors of GPT-2 with two layers, each with a step counter."""
BLOCK = 512


def on_card(*overrides: str, device: str = "h100") -> Recipe:
    return load_recipe(None, overrides=[*overrides, f"device.name={device}"])


@cache
def traced(*overrides: str, device: str = "h100") -> MemoryReport:
    return trace(on_card(*overrides, device=device))


def component(report: MemoryReport, phase: str, name: str) -> int:
    found = report.phase(phase)
    assert found is not None
    return found.components[name]


@pytest.fixture
def training() -> MemoryReport:
    return traced(*TRAINING)


def test_live_bytes_are_blocks_of_the_allocator(training: MemoryReport) -> None:
    for phase in training.phases:
        assert phase.peak_allocated_bytes == sum(phase.components.values())
        assert all(nbytes % BLOCK == 0 for nbytes in phase.components.values())
        assert phase.reserved_bytes is not None
        assert phase.reserved_bytes >= phase.peak_allocated_bytes
        assert phase.reserved_bytes % 2**21 == 0
    assert training.reserved_bytes == max(phase.reserved_bytes or 0 for phase in training.phases)
    assert training.provenance["reserved_bytes"] == "traced"


def test_the_report_speaks_of_the_product(training: MemoryReport) -> None:
    assert training.device.type == "cuda"
    assert training.device.name == "NVIDIA H100 80GB HBM3"
    assert training.device.total_bytes == 81559 * 2**20


def test_foreach_is_cudas_choice(training: MemoryReport) -> None:
    phase = training.phase("optimizer_step")
    assert phase is not None
    assert phase.peak_operation == "aten._foreach_sqrt"
    assert phase.components["workspace"] >= phase.components["gradients"] * 0.99


def test_only_a_fused_step_keeps_its_counters_on_the_card() -> None:
    loop, fused = (
        component(traced(*TRAINING, f"optimizer.implementation={kind}"), "optimizer_step", "optimizer_state")
        for kind in ("loop", "fused")
    )
    assert fused - loop == COUNTERS * BLOCK


def test_attention_keeps_no_scores_where_cuda_has_a_kernel_with_dropout() -> None:
    """On CPU dropout forces the scores into memory; a GPU's kernels know dropout."""
    fused = component(traced(*TRAINING), "forward", "activations")
    eager = component(traced(*TRAINING, "attention.backend=eager"), "forward", "activations")
    scores = 12 * 64 * 64 * 4
    assert eager - fused > 2 * scores


def test_masks_of_dropout_take_a_byte_an_element() -> None:
    kept = component(traced(*TRAINING), "forward", "activations")
    none = component(traced(*TRAINING, "model.dropout=0"), "forward", "activations")
    hidden = 64 * 768
    masks, results = (1 + 2 * 2) * hidden, (1 + 2 * 2) * hidden * 4
    assert kept - none >= masks
    assert kept - none < masks + results + 2**20


def test_a_run_beyond_the_budget_dies_at_a_place() -> None:
    fits = traced(*TRAINING, "budget.memory=1300MiB")
    assert fits.details["allocator"]["out_of_memory"] is None
    tight = traced(*TRAINING, "budget.memory=1000MiB")
    death = tight.details["allocator"]["out_of_memory"]
    assert death["phase"] == "optimizer_step"
    assert death["operation"].startswith("aten.")
    assert death["reserved"] <= 1000 * 2**20 < death["reserved"] + death["requested"]
    assert death["reserved_but_unallocated"] == death["reserved"] - death["allocated"]
    assert any(text.startswith("out of memory: of the 1000 MiB that the budget") for text in tight.warnings)
    assert tight.allocated_bytes == fits.allocated_bytes  # the peaks are those of a card with enough


def test_without_a_budget_the_cards_own_memory_is_the_limit() -> None:
    wide = "model.config={n_layer: 1, n_embd: 12288, n_head: 96}"
    report = traced(*TRAINING, wide, "workload.steps=1", device="t4")
    assert report.details["allocator"]["out_of_memory"]["phase"] in ("optimizer_step", "backward")
    assert any("that the t4 leaves to torch" in text for text in report.warnings)


def test_settings_of_the_allocator_come_from_the_recipe() -> None:
    plain, expandable = traced(*TRAINING), traced(*TRAINING, "device.allocator='expandable_segments:True'")
    assert expandable.reserved_bytes is not None
    assert plain.reserved_bytes is not None
    assert expandable.reserved_bytes < plain.reserved_bytes
    assert expandable.allocated_bytes <= plain.allocated_bytes


def test_a_part_of_the_card_may_be_all_that_torch_is_left() -> None:
    setting = "device.allocator='per_process_memory_fraction:0.005,garbage_collection_threshold:0.5'"
    tight, plain = traced(*TRAINING, setting), traced(*TRAINING)
    death = tight.details["allocator"]["out_of_memory"]
    assert death["reserved"] <= 0.005 * 81559 * 2**20
    assert tight.reserved_bytes == plain.reserved_bytes  # the peaks are those of a card with enough


def test_what_fits_a_calibrated_card_leaves_room_for_all_else() -> None:
    gpu = find_gpu("h100")
    known = Calibration(
        gpu="h100",
        product=gpu.product,
        date="2026-01-01T00:00:00Z",
        torch="2.11.0",
        cuda="13.0",
        driver="580",
        context_bytes=500 * 2**20,
        library_bytes=200 * 2**20,
        forward_workspace_bytes=2**25,
        backward_workspace_bytes=2**25,
        device_baseline_bytes=700 * 2**20,
    )
    card = Card(gpu, None, AllocatorSettings(), known)
    assert card.capacity(on_card(*GPT2)) + (700 + 700) * 2**20 == gpu.total_bytes
    assert card.capacity(on_card(*GPT2, "budget.memory=1GiB")) == (1024 - 700) * 2**20


def test_a_setting_that_changes_nothing_is_named() -> None:
    report = traced(*INFERENCE, "device.allocator='garbage_collection_threshold:0.5'")
    assert any("garbage_collection_threshold" in text for text in report.warnings)


def test_settings_of_the_allocator_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    by_recipe = traced(*INFERENCE, "device.allocator='expandable_segments:True'")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    assert trace(on_card(*INFERENCE)).reserved_bytes == by_recipe.reserved_bytes


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("device: h1000", "device.name: 'h1000' is no GPU that memgpt knows, did you mean 'h100'?"),
        ("device: {name: h100, allocator: 'max_split: 3'}", "device.allocator: "),
        ("device: {name: cpu, allocator: 'max_split_size_mb:3'}", "device.allocator: belongs to CUDA"),
        ("device: gpu:0", "device.name: 'gpu:0' is no device"),
    ],
)
def test_a_wrong_device_gets_one_sentence_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: gpt2\n{text}\n".replace("model: gpt2", "model: {name: gpt2}"), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        trace(load_recipe(path))
    assert str(caught.value).startswith(f"{path}:2:")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_card_that_nobody_named_is_assumed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> NoReturn:
        raise EnvironmentUnavailableError("this machine's NVIDIA Imagined 1 is not in the catalogue")

    monkeypatch.setattr("mem_gpt_cli.devices.present.gpu_present", unknown)
    report = trace(on_card(*INFERENCE, device="cuda"))
    assert report.device.name == "NVIDIA A100-SXM4-80GB"
    why = "'cuda' names no GPU and this machine's NVIDIA Imagined 1 is not in the catalogue: kernels"
    assert any(text.startswith(why) for text in report.warnings)


def test_each_decode_step_of_a_short_generation_runs() -> None:
    short = traced(*INFERENCE)
    whole = trace(on_card(*INFERENCE), full_depth=True)
    assert [vars(phase) for phase in short.phases] == [vars(phase) for phase in whole.phases]


def test_nothing_is_left_steered() -> None:
    def outside() -> tuple[Any, ...]:
        return (
            torch.tensor,
            torch.get_rng_state,
            torch.nn.functional.scaled_dot_product_attention,
            torch.nn.functional.dropout,
            torch.nn.functional.softmax,
        )

    before = outside()
    trace(on_card(*INFERENCE))
    assert outside() == before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.functional.softmax(torch.ones(2, dtype=torch.bfloat16), -1).dtype == torch.bfloat16


def test_experts_are_traced_on_a_card_with_bounds() -> None:
    report = traced(
        "model.name=mixtral-8x7b",
        "model.config={num_hidden_layers: 1, hidden_size: 64, intermediate_size: 128, vocab_size: 256}",
        "workload.seq=32",
        "workload.new_tokens=2",
        "model.experts=eager",
    )
    prefill = report.phase("prefill")
    assert prefill is not None
    assert prefill.lower_bytes is not None
    assert prefill.upper_bytes is not None
    assert prefill.lower_bytes <= prefill.peak_allocated_bytes <= prefill.upper_bytes
