"""The losses of a recipe: what they compute, what they refuse, what they cost."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from profiled import GPT2, LLAMA, MODELS, small_recipe

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import RecipeError, UnsupportedError
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.loss.compute import language_modelling_loss
from mem_gpt_cli.loss.cost import Fused, chunk_rows, fused_plan
from mem_gpt_cli.model.build import DTYPES
from mem_gpt_cli.profile import profile
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.trace import trace
from mem_gpt_cli.workload.autocast import autocast
from mem_gpt_cli.workload.build import build, build_on_meta

SHAPE = {**LLAMA["config"], "num_hidden_layers": 2}


def model_of(model_type: str, folder: Path) -> dict[str, Any]:
    """A small model of any family without dropout, by a config.json of its own."""
    if model_type in MODELS:
        return {**MODELS[model_type], "dropout": 0.0}
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": model_type, **SHAPE, **OF_FAMILY[model_type]}))
    return {"name": str(path), "dropout": 0.0}


OF_FAMILY: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 30.0},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
    "phi": {"num_key_value_heads": 4},
}


def losses(recipe: Recipe, kinds: tuple[dict[str, Any], ...]) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Loss and gradients of one model with each of the losses, on the same tokens."""
    torch.manual_seed(0)
    model = build(source_of(recipe), recipe).train()
    tokens = torch.randint(0, 300, (2, 37))
    labels = tokens.clone()
    labels[0, :9] = -100
    mask = torch.ones_like(tokens)
    mask[1, 30:] = 0
    labels[1, 30:] = -100
    found = []
    for kind in kinds:
        with_kind = recipe.model_copy(update={"loss": type(recipe.loss).model_validate(kind)})
        with autocast(recipe, tokens.device):
            loss, _ = language_modelling_loss(model, with_kind, tokens, labels, mask)
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad(set_to_none=True)
    return found


def assert_same(found: list[tuple[torch.Tensor, dict[str, Any]]], tolerance: float) -> None:
    (loss, gradients), *others = found
    for other, other_gradients in others:
        torch.testing.assert_close(other.to(loss.dtype), loss, rtol=tolerance, atol=tolerance)
        assert gradients.keys() == other_gradients.keys()
        for name, gradient in gradients.items():
            distance = (gradient.float() - other_gradients[name].float()).norm()
            assert distance <= tolerance * max(gradient.float().norm(), torch.tensor(1e-3)), name


CHUNKED = {"kind": "chunked", "chunk": 16}
FULL = {"kind": "full"}
FUSED = {"kind": "fused"}


@pytest.mark.parametrize(
    ("name", "policy"), [("gpt2", "full"), *((name, "none") for name in (*MODELS, *OF_FAMILY))]
)
def test_chunks_compute_what_the_full_loss_does(name: str, policy: str, tmp_path: Path) -> None:
    recipe = small_recipe(model_of(name, tmp_path), "training", checkpointing={"policy": policy})
    assert_same(losses(recipe, (FULL, CHUNKED, {"kind": "chunked", "chunk": 5000})), 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi"])
def test_the_fused_loss_computes_what_the_full_loss_does(name: str, tmp_path: Path) -> None:
    assert_same(losses(small_recipe(model_of(name, tmp_path), "training"), (FULL, FUSED)), 1e-4)


@pytest.mark.parametrize("kind", [CHUNKED, FUSED], ids=["chunked", "fused"])
def test_under_autocast_losses_are_as_near_as_bf16_is(kind: dict[str, Any]) -> None:
    model = {**GPT2, "dropout": 0.0}
    recipe = small_recipe(model, "training", workload={"batch": 2, "seq": 64, "autocast": "bf16"})
    assert_same(losses(recipe, (FULL, kind)), 0.03)


def test_chunks_go_through_adapters_of_the_output_matrix() -> None:
    adapters = {"kind": "lora", "rank": 4, "targets": ["lm_head", "q_proj"]}
    recipe = small_recipe(LLAMA, "training", adapters=adapters)
    found = losses(recipe, (FULL, CHUNKED))
    assert any("lm_head" in name for name in found[0][1])
    assert_same(found, 1e-5)


def test_labels_that_nobody_learns_give_no_number_as_transformers_has_it() -> None:
    recipe = small_recipe(GPT2, "training", loss=CHUNKED)
    model = build(source_of(recipe), recipe)
    tokens = torch.zeros(1, 8, dtype=torch.long)
    loss, outputs = language_modelling_loss(model, recipe, tokens, torch.full_like(tokens, -100))
    assert loss.isnan()
    assert outputs is None


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_fused_is_refused_where_logits_are_more_than_one_product(name: str, tmp_path: Path) -> None:
    recipe = small_recipe(model_of(name, tmp_path), "training", loss=FUSED)
    with pytest.raises(UnsupportedError, match=r"by more than one product .*write loss\.kind: chunked"):
        build_on_meta(source_of(recipe), recipe)
    with pytest.raises(UnsupportedError, match=r"write loss\.kind: chunked"):
        estimate(recipe)


def test_fused_takes_models_of_experts() -> None:
    """Their forward pass asks the decoder for more than hidden states."""
    model = {"name": "mixtral-8x7b", "config": {**LLAMA["config"], "num_local_experts": 2}}
    recipe = small_recipe(model, "training", loss=FUSED)
    build_on_meta(source_of(recipe), recipe)


def test_fused_is_refused_where_torch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "2.11.0+cu128")
    recipe = small_recipe(GPT2, "training", loss=FUSED)
    with pytest.raises(RecipeError, match=r"which torch 2\.11 has not: it came with 2\.13"):
        refuse_unavailable(recipe, "estimate")
    refuse_unavailable(small_recipe(GPT2, "training", loss=CHUNKED), "estimate")


def test_a_loss_with_more_to_it_is_refused() -> None:
    mixture = {
        "name": "mixtral-8x7b",
        "config": {**LLAMA["config"], "num_local_experts": 4, "output_router_logits": True},
    }
    recipe = small_recipe(mixture, "training", loss=CHUNKED)
    with pytest.raises(UnsupportedError, match="has more to it"):
        build_on_meta(source_of(recipe), recipe)


@given(
    rows=st.integers(1, 5000),
    hidden=st.sampled_from([16, 64, 96, 768, 4096]),
    vocab=st.integers(2, 60_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_plan_is_torchs_own(rows: int, hidden: int, vocab: int, dtype: torch.dtype) -> None:
    options = torch.nn.LinearCrossEntropyOptions()._adjust(rows, hidden, vocab, dtype, torch.device("cpu"))
    plan = fused_plan("cpu", dtype.itemsize, rows, hidden, vocab)
    assert (options.batch_chunk_size, options.acc_policy) == (plan.rows, plan.policy)
    assert (options.acc_dtype == torch.float32 and dtype != torch.float32) == plan.widens


@given(rows=st.integers(1, 3000), chunk=st.integers(1, 4000))
def test_chunks_cover_the_rows(rows: int, chunk: int) -> None:
    sizes = chunk_rows(rows, chunk)
    assert sum(sizes) == rows
    assert sizes == [part.shape[0] for part in torch.empty(rows).split(chunk)]


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(8, 400),
    hidden=st.sampled_from([16, 48, 64]),
    vocab=st.integers(100, 3000),
    dtype=st.sampled_from(["fp32", "bf16"]),
    trains=st.booleans(),
    biased=st.booleans(),
)
def test_what_the_fused_loss_takes(
    rows: int, hidden: int, vocab: int, dtype: str, trains: bool, biased: bool
) -> None:
    call = Fused("cpu", dtype, rows, hidden, vocab, trains, biased)
    kept, most = measured(call)
    assert kept == pytest.approx(sum(call.gradients), abs=64)
    assert most - kept == pytest.approx(call.inside_bytes, abs=1024 + 16 * call.plan.rows)


def measured(call: Fused) -> tuple[int, int]:
    """Bytes that a real call leaves, and the most that were there, by the allocator's own account."""
    dtype = DTYPES[call.dtype]
    rows = torch.randn(call.rows, call.hidden).to(dtype).requires_grad_()
    matrix = torch.randn(call.vocab, call.hidden).to(dtype).requires_grad_(call.trains_matrix)
    bias = torch.randn(call.vocab).to(dtype).requires_grad_(call.trains_matrix) if call.biased else None
    labels = torch.randint(call.vocab, (call.rows,))
    with torch.profiler.profile(profile_memory=True) as profiler:
        loss = torch.nn.functional.linear_cross_entropy(
            rows, matrix, labels, linear_bias=bias, options=torch.nn.LinearCrossEntropyOptions()
        )
    live = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    del loss
    return live, most


CELLS: dict[str, dict[str, Any]] = {
    "chunked": {"loss": {"kind": "chunked", "chunk": 32}},
    "fused": {"loss": FUSED},
    "accumulated": {"workload": {"batch": 2, "seq": 64, "accumulate": 3, "clip_norm": 1.0}},
    "chunked, accumulated": {
        "loss": {"kind": "chunked", "chunk": 50},
        "workload": {"batch": 2, "seq": 64, "accumulate": 2},
        "checkpointing": {"policy": "full"},
    },
}


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("gpt2", "fused"),  # the output matrix is the embedding's, or one of its own
        ("llama", "fused"),
        ("llama", "chunked"),
        ("gpt2", "accumulated"),
        ("gpt2", "chunked, accumulated"),
    ],
)
def test_the_lenses_agree(name: str, cell: str) -> None:
    recipe = small_recipe(MODELS[name], "training", **CELLS[cell])
    traced, formula = trace(recipe), estimate(recipe)
    measured = profile(recipe, passes="memory")
    for phase in measured.phases:
        height = phase.peak_allocated_bytes
        by_trace, by_formula = traced.phase(phase.name), formula.phase(phase.name)
        assert by_trace is not None
        assert by_formula is not None
        assert abs(by_trace.peak_allocated_bytes - height) <= max(4096, height / 10_000), phase.name
        assert abs(by_formula.peak_allocated_bytes - height) <= height / 100, phase.name


def test_many_micro_batches_cost_what_two_do() -> None:
    def at(batches: int) -> list[int]:
        work = {"batch": 1, "seq": 32, "accumulate": batches}
        report = trace(small_recipe(GPT2, "training", workload=work))
        return [phase.peak_allocated_bytes for phase in report.phases]

    two, many = at(2), at(64)
    assert two == many
    assert at(1)[1] < two[1]


def test_a_fused_loss_on_a_card_keeps_its_gradients_and_one_chunk() -> None:
    def forward(kind: str) -> int:
        work = {"batch": 8, "seq": 128}
        recipe = small_recipe(GPT2, "training", device="h100", loss={"kind": kind}, workload=work)
        for report in (estimate(recipe), trace(recipe)):
            found = report.phase("forward")
            assert found is not None
            heights.append(found.peak_allocated_bytes)
        assert heights[-2] == pytest.approx(heights[-1], rel=0.01)
        return heights[-1]

    heights: list[int] = []
    assert forward("fused") < forward("chunked")
