"""The three lenses agree on every cache, and refuse alike what a cache cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.kv_cache import cost
from mem_gpt_cli.kv_cache.storage import cache_tensors
from mem_gpt_cli.kv_cache.window import windowed
from mem_gpt_cli.profile import profile
from mem_gpt_cli.recipe import load_recipe, refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import MemoryReport
from mem_gpt_cli.trace import trace
from mem_gpt_cli.workload import Inference, Unobserved
from mem_gpt_cli.workload.build import build
from tests.profiled import GPT2, LLAMA, small_recipe

GIVEN = {"gpt2": GPT2, "llama": {**LLAMA, "config": {**LLAMA["config"], "num_hidden_layers": 6}}}
CACHES = {
    "static": {"kind": "static"},
    "roomy": {"kind": "static", "max_tokens": 150},
    "fp8": {"kind": "quantized"},
    "sliding": {"kind": "sliding", "window": 24},
}
UNLIKE = {"requests": [5, 64, 40], "new_tokens": 7}
ALIKE = {"batch": 2, "prompt_tokens": 64, "new_tokens": 7}
ACCURACY = 1e-4
PAGE = 4096


def recipe_of(
    model: str, cache: str, workload: dict[str, object], dtype: str = "fp32", **sections: object
) -> Recipe:
    data = {**GIVEN[model], "dtype": dtype, "weights": "random"}
    return small_recipe(data, "inference", kv_cache=CACHES[cache], workload=workload, **sections)


def peaks(report: MemoryReport) -> dict[str, int]:
    return {phase.name: phase.peak_allocated_bytes for phase in report.phases}


def assert_measured(traced: dict[str, int], recipe: Recipe) -> None:
    """Seven tokens: the trace runs the first and the last steps alone, and few layers stand for all."""
    for phase, nbytes in peaks(profile(recipe, passes="memory")).items():
        assert abs(traced[phase] - nbytes) <= max(PAGE, ACCURACY * nbytes), phase


def assert_told(traced: dict[str, int], recipe: Recipe) -> None:
    told = peaks(estimate(recipe))
    for phase, nbytes in traced.items():
        assert told[phase] == pytest.approx(nbytes, rel=1e-3), phase


@pytest.mark.parametrize(
    ("model", "cache", "workload"),
    [("gpt2", "fp8", ALIKE), ("gpt2", "sliding", UNLIKE), ("llama", "static", UNLIKE)],
)
def test_the_trace_is_what_is_measured_in_bf16(model: str, cache: str, workload: dict[str, object]) -> None:
    recipe = recipe_of(model, cache, workload, "bf16")
    assert_measured(peaks(trace(recipe)), recipe)


@pytest.mark.parametrize(
    ("model", "cache", "workload", "attention"),
    [
        ("gpt2", "static", UNLIKE, "sdpa"),
        ("llama", "roomy", ALIKE, "sdpa"),
        ("llama", "fp8", UNLIKE, "eager"),
        ("llama", "sliding", ALIKE, "sdpa"),
    ],
)
def test_all_lenses_agree(model: str, cache: str, workload: dict[str, object], attention: str) -> None:
    recipe = recipe_of(model, cache, workload, attention={"backend": attention})
    traced = peaks(trace(recipe))
    assert_measured(traced, recipe)
    assert_told(traced, recipe)


@pytest.mark.parametrize(
    ("model", "cache", "workload", "attention"),
    [
        ("llama", "static", ALIKE, "eager"),
        ("gpt2", "roomy", UNLIKE, "eager"),
        ("gpt2", "fp8", ALIKE, "sdpa"),
        ("gpt2", "sliding", UNLIKE, "eager"),
    ],
)
def test_the_formula_is_the_trace(
    model: str, cache: str, workload: dict[str, object], attention: str
) -> None:
    recipe = recipe_of(model, cache, workload, attention={"backend": attention})
    assert_told(peaks(trace(recipe)), recipe)


@pytest.mark.parametrize(
    ("model", "cache", "workload"),
    [
        ("gpt2", "static", UNLIKE),
        ("llama", "fp8", ALIKE),
        ("llama", "sliding", UNLIKE),
        ("gpt2", "offloaded", ALIKE),
        ("llama", "offloaded", UNLIKE),
    ],
)
def test_the_formula_is_the_trace_on_a_gpu(model: str, cache: str, workload: dict[str, object]) -> None:
    kind = CACHES.get(cache, {"kind": cache})
    recipe = small_recipe(
        {**GIVEN[model], "dtype": "bf16"}, "inference", kv_cache=kind, workload=workload, device="h100"
    )
    assert_told(peaks(trace(recipe)), recipe)


def test_an_offloaded_cache_has_one_layer_on_the_device_between_two_passes() -> None:
    recipe = small_recipe(
        {**GIVEN["llama"], "dtype": "bf16"},
        "inference",
        kv_cache={"kind": "offloaded"},
        workload={"batch": 2, "prompt_tokens": 64, "new_tokens": 2},
        device="h100",
    )
    traced = trace(recipe).phase("prefill")
    dynamic = trace(recipe.model_copy(update={"kv_cache": type(recipe.kv_cache)()})).phase("prefill")
    assert traced is not None
    assert dynamic is not None
    whole = cost.cache_bytes(source_of(recipe).architecture, 2, 64, 2)
    stored = cost.storing(recipe, 2)
    resident = cost.cache_bytes(source_of(recipe).architecture, 2, 64, stored)
    assert resident * 6 == whole
    assert traced.components["kv_cache"] == resident  # it comes back while the last layer is computed
    assert dynamic.components["kv_cache"] == whole


@settings(max_examples=30, deadline=None)
@given(
    cache=st.sampled_from(["dynamic", "static", "roomy", "fp8", "sliding"]),
    model=st.sampled_from(sorted(GIVEN)),
    prompts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    new=st.integers(1, 6),
    dtype=st.sampled_from(["fp32", "bf16"]),
)
def test_the_cost_of_a_cache_is_what_it_holds(
    cache: str, model: str, prompts: list[int], new: int, dtype: str
) -> None:
    recipe = small_recipe(
        {**GIVEN[model], "dtype": dtype, "weights": "random"},
        "inference",
        kv_cache=CACHES.get(cache, {}),
        workload={"requests": prompts, "new_tokens": new},
    )
    source, run = source_of(recipe), Inference(recipe)
    network = build(source, recipe).eval()
    state = run.prefill(network, torch.ones(len(prompts), max(prompts), dtype=torch.long), Unobserved())
    for _ in range(run.decode_steps):
        state = run.decode(network, state, Unobserved())
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in cache_tensors(state.cache)}
    held = sum(storage.nbytes() for storage in storages.values())
    item = {"fp32": 4, "bf16": 2}[dtype]
    expected = cost.cache_bytes(
        windowed(source.architecture, recipe),
        len(prompts),
        max(prompts) + new - 1,
        cost.storing(recipe, item),
        decoded=new > 1,
    )
    assert held == expected


def test_one_layer_alone_is_never_left_on_the_device() -> None:
    recipe = load_recipe(None, overrides=["model.name=gpt2", "kv_cache.kind=offloaded", "device=h100"])
    architecture = source_of(recipe).architecture
    alone = replace(architecture, layers=architecture.layers[:1])
    assert cost.cache_bytes(alone, 1, 8, cost.storing(recipe, 4)) == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("kv_cache.max_tokens=64", "belongs to a static cache, and the kind is dynamic"),
        ("kv_cache.kind=static kv_cache.window=64", "belongs to a sliding cache"),
        ("kv_cache.kind=static kv_cache.format=fp8", "belongs to a quantized cache"),
        ("kv_cache.kind=quantized kv_cache.pages=4", "belongs to a paged cache"),
        ("task=training kv_cache.kind=static", "training keeps no KV cache"),
        ("task=training kv_cache.window=4", "belongs to a sliding cache"),
        ("kv_cache.kind=static kv_cache.max_tokens=511", "less than the 512 tokens"),
        ("kv_cache.kind=sliding kv_cache.window=1", "write 2 or more"),
        ("kv_cache.kind=offloaded", "the device is the host"),
        ("kv_cache.kind=static workload.autocast=bf16", "set model.dtype in place of workload.autocast"),
        ("kv_cache.kind=quantized workload.autocast=bf16", "cannot join what is stored in fp8"),
        (
            "kv_cache.kind=static attention.backend=flash device=h100 model.dtype=bf16",
            "flash kernel for CUDA does not take",
        ),
        (
            "workload.requests=[3,9] attention.backend=flash device=h100 model.dtype=bf16",
            "unlike requests are padded",
        ),
    ],
)
def test_what_a_cache_cannot_do_is_refused_by_all_lenses(overrides: str, sentence: str) -> None:
    recipe = load_recipe(None, overrides=overrides.split())
    for lens in ("estimate", "trace", "profile"):
        with pytest.raises(RecipeError, match=sentence):
            refuse_unavailable(recipe, lens)


def test_all_lenses_refuse_a_quantized_cache_for_windows_before_anything_is_loaded() -> None:
    """Mistral has 7 billion parameters: a run that loaded them first would not end here."""
    recipe = load_recipe(None, overrides=["model.name=mistral-7b-v0.1", "kv_cache.kind=quantized"])
    for lens in (estimate, trace, profile):
        with pytest.raises(RecipeError, match="has layers with a window"):
            lens(recipe)
