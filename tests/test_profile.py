"""Real runs: what is measured adds up, and the trace said it before."""

from __future__ import annotations

import importlib
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError
from mem_gpt_cli.profile import per_token, profile
from mem_gpt_cli.profile.process import ProcessPeak
from mem_gpt_cli.report import PHASES, MemoryReport
from mem_gpt_cli.report.json import from_dict, to_dict
from mem_gpt_cli.report.per_token import PerToken, Token, table
from mem_gpt_cli.trace import trace
from tests.profiled import GPT2, INFERENCE, LLAMA, MODELS, small_recipe


def shallow(model: dict[str, Any], layers: int = 1) -> dict[str, Any]:
    """The model for what does not depend on its depth."""
    key = "n_layer" if model is GPT2 else "num_hidden_layers"
    return {**model, "config": {**model["config"], key: layers}}


def within_the_gate(predicted: int, truth: int) -> bool:
    return abs(predicted - truth) <= max(4096, truth // 10_000)


def adds_up_to_the_measured_peak(report: MemoryReport) -> None:
    assert [phase.name for phase in report.phases] == list(PHASES[report.task])
    for phase in report.phases:
        assert sum(phase.components.values()) == phase.peak_allocated_bytes > 0
        assert min(phase.components.values()) >= 0
        assert phase.peak_operation
    assert from_dict(to_dict(report)) == report


def was_predicted_in_every_phase(report: MemoryReport, predicted: MemoryReport) -> None:
    assert within_the_gate(predicted.allocated_bytes, report.allocated_bytes)
    for phase in report.phases:
        said = predicted.phase(phase.name)
        assert said is not None
        assert within_the_gate(said.peak_allocated_bytes, phase.peak_allocated_bytes), phase.name
        for name, held in phase.components.items():
            assert within_the_gate(said.components[name], held), (phase.name, name)
        if phase.name != "load":  # which ends with making tokens: random ones here, zeros there
            assert said.peak_operation == phase.peak_operation
            assert said.peak_module == phase.peak_module


def has_the_weights_and_cache_that_it_must(report: MemoryReport, model: str) -> None:
    prefill, decode = report.phase("prefill"), report.phase("decode")
    assert prefill is not None
    assert decode is not None
    config = MODELS[model]["config"]
    layers, heads = (3, 4) if model == "gpt2" else (3, config["num_key_value_heads"])
    per_position = 2 * layers * heads * 16 * 4 * INFERENCE["batch"]
    assert prefill.components["kv_cache"] == 96 * per_position
    # In the last step one layer's longer cache is made while the shorter one still lives: at least this much.
    assert decode.components["kv_cache"] >= (96 + 4) * per_position - per_position
    assert prefill.components["weights"] == decode.components["weights"] >= 4 * report.model.parameters


def has_durations_and_speed(report: MemoryReport) -> None:
    assert all(phase.duration_s and phase.duration_s > 0 for phase in report.phases)
    speed = report.speed
    assert speed is not None
    assert speed.tokens_per_s
    if report.task == "inference":
        decode, prefill = report.phase("decode"), report.phase("prefill")
        assert decode is not None
        assert decode.duration_s is not None
        assert prefill is not None
        assert prefill.duration_s is not None
        assert speed.decode_ms_per_token == pytest.approx(1000 * decode.duration_s / 4)
        assert speed.ttft_ms == pytest.approx(1000 * prefill.duration_s)
        assert speed.tokens_per_s == pytest.approx(10 / (decode.duration_s + prefill.duration_s))
        assert speed.step_s is None
    else:
        assert speed.step_s
        assert speed.ttft_ms is None
        assert speed.tokens_per_s == pytest.approx(2 * 64 / speed.step_s)


def names_the_inner_buffers_of_kernels(report: MemoryReport) -> None:
    buffers = report.details["inner_buffers"]
    assert buffers[0]["operation"] == "aten._scaled_dot_product_flash_attention_for_cpu_backward"
    assert buffers[0]["calls"] % (3 * 2) == 0
    assert buffers[0]["largest_bytes"] > 1024


@pytest.mark.parametrize("task", ["inference", "training"])
@pytest.mark.parametrize("model", MODELS)
def test_a_run_is_what_it_must_be_and_what_the_trace_said(model: str, task: str) -> None:
    """All that is asked of one run: it takes longer than to ask."""
    recipe = small_recipe(MODELS[model], task)
    report = profile(recipe)
    adds_up_to_the_measured_peak(report)
    has_durations_and_speed(report)
    was_predicted_in_every_phase(report, trace(recipe))
    if task == "inference":
        has_the_weights_and_cache_that_it_must(report, model)
    elif model == "llama":
        names_the_inner_buffers_of_kernels(report)


def test_random_weights_and_data_follow_the_seed() -> None:
    recipe = small_recipe(shallow(GPT2), "training", workload={"batch": 1, "seq": 32, "steps": 1})
    first, second = (profile(recipe, passes="memory") for _ in range(2))
    assert first.phases == second.phases
    assert first.speed is None
    assert first.provenance["duration_s"] == "unavailable"
    assert all(phase.duration_s is None and phase.process_bytes is None for phase in first.phases)


def test_eager_attention_without_a_cache_holds_its_scores() -> None:
    recipe = small_recipe(
        shallow(LLAMA, 2), "inference", attention={"backend": "eager"}, kv_cache={"kind": "none"}
    )
    report, predicted = profile(recipe, passes="memory"), trace(recipe)
    assert within_the_gate(predicted.allocated_bytes, report.allocated_bytes)
    assert report.peak.components["kv_cache"] == 0
    scores = 2 * 4 * 100 * 100 * 4
    assert report.peak.components["activations"] > 2 * scores


def test_checkpointing_and_dropout_agree_with_the_trace() -> None:
    recipe = small_recipe(
        {**shallow(GPT2, 2), "dropout": 0.1},
        "training",
        checkpointing={"policy": "full"},
        workload={"batch": 2, "seq": 64},
    )
    report, predicted = profile(recipe, passes="memory"), trace(recipe)
    assert within_the_gate(predicted.allocated_bytes, report.allocated_bytes)


@pytest.mark.parametrize(
    ("task", "fits", "breaks"),
    [
        ("training", {"seq": 256, "steps": 1}, {"seq": 257}),
        ("inference", {"prompt_tokens": 255, "new_tokens": 2}, {"prompt_tokens": 255, "new_tokens": 3}),
    ],
)
def test_learned_positions_are_held_to_before_the_run(
    task: str, fits: dict[str, int], breaks: dict[str, int]
) -> None:
    steps: list[str] = []
    with pytest.raises(UsageError, match="learned positions end at 256"):
        profile(
            small_recipe(shallow(GPT2), task, workload=breaks), progress=lambda *step: steps.append(step[0])
        )
    assert steps == []
    assert profile(small_recipe(shallow(GPT2), task, workload=fits), passes="memory").allocated_bytes > 0


def test_rotary_positions_have_no_end() -> None:
    model = {**LLAMA, "config": {**LLAMA["config"], "max_position_embeddings": 16}}
    assert profile(small_recipe(shallow(model), "inference"), passes="memory").allocated_bytes > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_one_sentence(name: str) -> None:
    recipe = small_recipe(GPT2, "inference", device={"name": name})
    with pytest.raises(EnvironmentUnavailableError, match=name) as caught:
        profile(recipe)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_progress_counts_the_steps_of_both_passes() -> None:
    seen: list[tuple[str, int, int, int | None]] = []
    recipe = small_recipe(shallow(GPT2, 2), "inference")
    profile(recipe, progress=lambda *step: seen.append(step))
    assert [step for _, step, _, _ in seen] == list(range(1, 13))
    assert {steps for _, _, steps, _ in seen} == {12}
    assert [phase for phase, *_ in seen] == 2 * ["load", "prefill", "decode", "decode", "decode", "decode"]
    assert [live is None for *_, live in seen] == 6 * [True] + 6 * [False]
    assert seen[-1][3] is not None
    assert seen[-1][3] > 4 * 100_000


def test_process_memory_is_none_where_the_system_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    process = importlib.import_module("mem_gpt_cli.profile.process")
    refused = tmp_path / "no_such_folder" / "clear_refs"
    monkeypatch.setattr(process, "_CLEAR_REFS", refused)
    report = profile(small_recipe(shallow(GPT2), "inference"))
    assert report.process_bytes is None
    assert all(phase.process_bytes is None for phase in report.phases)
    assert report.provenance["process_bytes"] == "unavailable"


def test_process_peak_is_that_of_its_stretch() -> None:
    peak = ProcessPeak()
    assert peak.read() is None, "nothing was reset yet"
    peak.reset()
    before = peak.read()
    if before is None:
        pytest.skip("this system does not let the peak be reset")
    block = bytearray(64 * 2**20)
    with_block = peak.read()
    del block
    peak.reset()
    after = peak.read()
    assert with_block is not None
    assert after is not None
    assert with_block - before > 60 * 2**20
    assert with_block - after > 60 * 2**20


def test_threads_are_those_of_the_recipe_and_given_back() -> None:
    before = torch.get_num_threads()
    recipe = small_recipe(shallow(GPT2), "inference", device={"name": "cpu", "threads": 3})
    report = profile(recipe, passes="memory")
    assert report.details["threads"] == 3
    assert torch.get_num_threads() == before


def test_per_token_shows_the_cache_grow_and_recomputation_not() -> None:
    tokens = per_token(small_recipe(shallow(LLAMA), "inference"))
    per_position = 2 * 1 * 2 * 16 * 4 * INFERENCE["batch"]
    assert tokens.cache_bytes_per_token == per_position
    assert [token.kv_cache_bytes for token in tokens.with_cache] == [
        (96 + step) * per_position for step in range(5)
    ]
    assert {token.kv_cache_bytes for token in tokens.without_cache} == {0}
    grown = [late.live_bytes - early.live_bytes for early, late in pairwise(tokens.with_cache[1:])]
    assert grown == [per_position + 2 * 2 * 8] * 3, (
        "keys, values and the token, in this sequence and the last"
    )
    assert tokens.without_cache[-1].peak_bytes > tokens.with_cache[-1].peak_bytes
    assert all(token.ms and token.peak_bytes >= token.live_bytes for token in tokens.with_cache)
    assert tokens.to_dict()["without_cache"][4]["index"] == 5


def test_per_token_table_of_a_long_run_keeps_the_last_token() -> None:
    generated = tuple(Token(index, 1000 * index, 10 * index, 2000 * index, 1.5) for index in range(1, 51))
    tokens = PerToken(generated, generated)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(tokens))
    lines = console.export_text().splitlines()
    indices = [int(line.split()[0]) for line in lines if line.split() and line.split()[0].isdigit()]
    assert indices[0] == 1
    assert indices[-1] == 50
    assert len(indices) <= 26


def test_per_token_follows_generation_only() -> None:
    with pytest.raises(UsageError, match="--per-token"):
        per_token(small_recipe(GPT2, "training"))


def test_an_option_that_a_device_lacks_is_refused_before_the_run() -> None:
    steps: list[str] = []
    with pytest.raises(UsageError, match="paged_adamw_8bit"):
        profile(
            small_recipe(GPT2, "training", optimizer={"name": "paged_adamw_8bit"}),
            progress=lambda *step: steps.append(step[0]),
        )
    assert steps == []
