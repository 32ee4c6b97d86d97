"""A paged cache: the tokens of each request alone, every byte in all lenses, the memory given back."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import mem_gpt_cli as memgpt
from mem_gpt_cli.errors import RecipeError, UnsupportedError
from mem_gpt_cli.kv_cache import use_paged_kv_cache_if_available
from mem_gpt_cli.kv_cache.paged import PagedGeneration
from mem_gpt_cli.kv_cache.paged_pool import Pool, PoolBytes
from mem_gpt_cli.kv_cache.paged_schedule import pages_needed, schedule
from mem_gpt_cli.model import resolve
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.recipe.paging import Paging
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload import Paged, Unobserved, page_details, workload_of
from mem_gpt_cli.workload.build import build
from tests import profiled
from tests.profiled import small_recipe

LENGTHS = [5, 40, 16, 1, 33, 100]
NEW = 6
MODELS = {
    name: {**model, "config": {**model["config"], layers: 2}}
    for (name, model), layers in zip(profiled.MODELS.items(), ("n_layer", "num_hidden_layers"), strict=True)
}
TINY: dict[str, Any] = {"name": "memgpt-tiny"}
MODELS_AND_TINY = {**MODELS, "memgpt-tiny": TINY}
MIX = {"requests": {"count": 32, "shortest": 16, "longest": 1024}, "new_tokens": 16}


def paged(model: dict[str, Any], **kv_cache: Any) -> Recipe:
    return small_recipe(
        model,
        "inference",
        workload={"requests": LENGTHS, "new_tokens": NEW},
        kv_cache={"kind": "paged", "batch_tokens": 64, **kv_cache},
    )


def real_model(recipe: Recipe) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(resolve(recipe.model), recipe, torch.device("cpu")).eval()


def prompts(words: int, lengths: list[int] = LENGTHS) -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(words) for _ in range(length)] for length in lengths]


def alone(model: Any, prompt: list[int], new: int) -> list[int]:
    """Greedy tokens of one request, eager with a dynamic cache."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        tokens, cache, found = torch.tensor([prompt]), None, []
        for _ in range(new):
            with torch.no_grad():
                out = model(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
            found.append(int(tokens))
        return found
    finally:
        model.set_attn_implementation(before)


@pytest.mark.parametrize(
    ("name", "backend"), [("gpt2", "eager"), ("llama", "sdpa"), ("llama", "eager"), ("memgpt-tiny", "sdpa")]
)
def test_tokens_are_those_of_each_request_alone(name: str, backend: str) -> None:
    """From a pool that suffices, and from one so small that requests lose their pages and begin anew."""
    recipe = paged(MODELS_AND_TINY[name]).model_copy(
        update={"attention": Recipe.model_validate({"attention": {"backend": backend}}).attention}
    )
    model = real_model(recipe)
    asked = prompts(int(model.config.vocab_size))
    expected = [alone(model, prompt, NEW) for prompt in asked]
    for pages in (None, 8):
        generation = PagedGeneration(model, Pool.of(Paging.of(recipe), pages))
        for prompt in asked:
            generation.add(prompt, NEW)
        assert generation.run() == expected
        generation.close()
    assert model.config._attn_implementation == backend


@pytest.mark.parametrize(
    ("name", "kv_cache"), [("gpt2", {}), ("llama", {"pages": 8})], ids=["gpt2-needed", "llama-few"]
)
def test_trace_is_the_measurement_and_counts_the_same_pages(name: str, kv_cache: dict[str, int]) -> None:
    recipe = paged(MODELS[name], **kv_cache)
    traced, measured = memgpt.trace(recipe), memgpt.profile(recipe, passes="memory")
    for dry, real in zip(traced.phases, measured.phases, strict=True):
        assert abs(dry.peak_allocated_bytes - real.peak_allocated_bytes) <= 64, dry.name
        for part in ("weights", "kv_cache", "activations", "logits"):
            assert dry.components[part] == real.components[part]
    assert traced.details["pages"] == measured.details["pages"]
    again = traced.details["pages"]["allocated"] - pages_needed(Paging.of(recipe))
    assert (again > 0) == bool(kv_cache), "few pages are lost and allocated anew"


@pytest.mark.parametrize(("name", "backend"), [("gpt2", "eager"), ("llama", "sdpa")])
def test_formula_walks_to_the_traced_peaks(name: str, backend: str) -> None:
    recipe = load_recipe(
        flags={
            "model": MODELS[name],
            "workload": {"requests": {"count": 4, "shortest": 4, "longest": 200}, "new_tokens": NEW},
            "kv_cache.kind": "paged",
            "attention.backend": backend,
            "device.threads": 1,
        }
    )
    formula, traced = memgpt.estimate(recipe), memgpt.trace(recipe)
    for own, dry in zip(formula.phases, traced.phases, strict=True):
        assert own.components["kv_cache"] == dry.components["kv_cache"]
        assert own.peak_allocated_bytes == pytest.approx(dry.peak_allocated_bytes, rel=1e-4), own.name


@pytest.mark.parametrize("name", MODELS)
def test_the_pool_and_its_inputs_are_as_long_as_the_formula_says(name: str) -> None:
    recipe = paged(MODELS[name], page_size=8, pages=30)
    model: Any = real_model(recipe)
    pool = Pool.of(Paging.of(recipe), 30)
    generation = PagedGeneration(model, pool)
    part = resolve(recipe.model).architecture.layers[0].attention
    sizes = PoolBytes(pool, model.config.num_hidden_layers, part.kv_heads, part.head_dim, 4)
    assert sum(tensor.nbytes for tensor in generation.pool_tensors()) == sizes.cache
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in generation.input_tensors()}
    held = sorted(storage.nbytes() for storage in storages.values() if storage.nbytes())
    assert held == sorted([*sizes.inputs, sizes.mask])
    generation.close()


def test_the_schedule_is_that_of_transformers() -> None:
    recipe = paged(MODELS["llama"])
    model: Any = real_model(recipe)
    paging = Paging.of(recipe)
    generation = PagedGeneration(model, Pool.of(paging, None))
    for prompt in prompts(500):
        generation.add(prompt, NEW)
    for step in schedule(paging):
        assert generation.pending
        assert generation.reading is step.reading
        generation.step()
        inputs = generation._processor.inputs_and_outputs
        assert (inputs.num_q_tokens, inputs.max_kv_read) == (step.queries, step.past)
        assert inputs.num_request_in_batch == step.requests
    assert not generation.pending
    assert generation.count.peak == pages_needed(paging)
    generation.close()


def test_under_four_percent_of_the_pages_is_waste_on_a_mix_of_32_requests() -> None:
    """Page size 16, 16 to 1024 tokens: measured by the real block manager, and by counting on paper."""
    small = {**MODELS["llama"]["config"], "num_hidden_layers": 1, "vocab_size": 64}
    model = {"name": "tinyllama-1.1b", "config": small}
    recipe = load_recipe(flags={"model": model, "workload": MIX, "kv_cache.kind": "paged"})
    torch_model, workload = real_model(recipe), workload_of(recipe)
    assert isinstance(workload, Paged)
    workload.run(torch_model, torch.zeros(32, 0), Unobserved())
    pages = page_details(workload, torch_model)["pages"]
    assert (pages["page_size"], len(recipe.prompts)) == (16, 32)
    assert (min(recipe.prompts), max(recipe.prompts)) == (16, 1024)
    assert 0 < pages["waste_percent"] < 4
    assert 0 < pages["mean_waste_percent"] < 4
    paging = Paging.of(recipe)
    kept = [paging.stored(prompt) for prompt in paging.prompts]
    slots = paging.together * paging.page_size
    assert 1 - sum(kept) / slots < 0.04
    token = pages["page_bytes"] // 16
    assert pages["padded_bytes"] == 32 * (1024 + 15) * token
    assert pages["pool_bytes"] == pages["peak_in_use_bytes"] < pages["padded_bytes"] / 4
    assert pages["allocated"] == pages["freed"] == paging.together
    assert pages["reused"] == pages["allocated"] - pages["peak_in_use"]


def test_requests_that_begin_alike_share_their_pages() -> None:
    recipe = paged(MODELS["llama"])
    model: Any = real_model(recipe)
    common = prompts(500, [48])[0]
    asked = [common + rest for rest in prompts(500, [3, 7, 20])]
    expected = [alone(model, prompt, 6) for prompt in asked]
    paging = Paging.over(recipe.kv_cache, [len(prompt) for prompt in asked], 6)
    generation = PagedGeneration(model, Pool.of(paging, paging.together))
    generation.add(asked[0], 6)
    generation.step()
    for prompt in asked[1:]:
        generation.add(prompt, 6)
    assert generation.run() == expected
    assert generation.count.shared == 2 * 48 // 16
    assert generation.count.peak == paging.together - 2 * 48 // 16
    generation.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_the_memory_is_given_back() -> None:
    recipe = paged(MODELS["llama"])
    model: Any = real_model(recipe)
    PagedGeneration(model, Pool.of(Paging.of(recipe), None)).close()  # what a process loads once
    gc.collect()
    before = resident_bytes()
    pages = 200_000_000 // PoolBytes(Pool.of(Paging.of(recipe), 1), 3, 2, 16, 4).page
    generation = PagedGeneration(model, Pool.of(Paging.over(recipe.kv_cache, [20], 4), pages))
    generation.add(prompts(500, [20])[0], 4)
    generation.run()
    during = resident_bytes()
    generation.close()
    after = resident_bytes()
    assert during - before > 200_000_000
    assert after - before < 0.05 * (during - before)


def test_a_budget_leaves_a_pool_whose_run_stays_within_it() -> None:
    flags: dict[str, Any] = {
        "model": MODELS["llama"],
        "workload": {"requests": {"count": 16, "shortest": 16, "longest": 60}, "new_tokens": 24},
        "kv_cache": {"kind": "paged", "batch_tokens": 64},
        "device.threads": 1,
    }
    budget = round(0.6 * memgpt.estimate(load_recipe(flags=flags)).allocated_bytes)
    tight = load_recipe(flags=flags | {"budget.memory": budget})
    measured = memgpt.profile(tight, passes="memory")
    paging = Paging.of(tight)
    assert paging.largest < measured.details["pages"]["pool_pages"] < pages_needed(paging)
    assert 0.8 * budget < measured.allocated_bytes <= budget
    with pytest.raises(RecipeError, match=r"budget.memory: .* too few pages for the longest request"):
        memgpt.estimate(load_recipe(flags=flags | {"budget.memory": 1_000_000}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kv_cache.pages": 3}, r"kv_cache.pages: the longest request keeps 105 tokens, 7 pages of 16"),
        ({"kv_cache.page_size": 2}, "kv_cache.page_size: pages have at least 4 tokens"),
        ({"attention.backend": "flash"}, "attention.backend: paged requests share one row under a mask"),
        ({"attention.backend": "lsh"}, "attention.backend: .* cannot read a paged cache"),
        ({"workload.autocast": "bf16"}, "workload.autocast: a paged cache has the model's own dtype"),
        ({"workload.logits": "all"}, "workload.logits: continuous batching computes the logits of last"),
    ],
)
def test_what_cannot_be_paged_is_refused_with_the_reason(change: dict[str, Any], sentence: str) -> None:
    recipe = load_recipe(flags=paged(MODELS["llama"]).model_dump(mode="json") | change)
    with pytest.raises(RecipeError, match=sentence):
        memgpt.estimate(recipe)


@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "gemma-3-1b", "bloom-560m"])
@pytest.mark.parametrize("lens", [memgpt.estimate, memgpt.trace])
def test_families_that_do_not_page_are_refused_by_name(name: str, lens: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"kv_cache.kind: paged cannot run .*: its "):
        lens(load_recipe(flags={"model.name": name, "kv_cache.kind": "paged", "workload.new_tokens": 2}))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 20}, {"repetition_penalty": 1.3}])
def test_text_from_pages_is_the_text_without_them(sampling: dict[str, Any]) -> None:
    plain = memgpt.load({"model.name": "memgpt-tiny", "workload.new_tokens": 12})
    pages = use_paged_kv_cache_if_available(plain)
    assert pages.recipe.kv_cache.kind == "paged"
    texts = ["The memory of a model", "Once", "In the year of our Lord there was a king who had three"]
    heard: dict[int, str] = {}
    asked = pages.with_options(sampling=sampling)
    found = asked.complete(
        asked.read(texts),
        lambda prompt, piece: heard.update({prompt.index: heard.get(prompt.index, "") + piece}),
    )
    answers = {completion.prompt.index: completion.text for completion in found}
    for index, text in enumerate(texts):
        assert text + answers[index] == plain.generate(text, **sampling, seed=index)
    assert {index: heard[index].strip() for index in heard} == {i: t.strip() for i, t in answers.items()}


def test_a_model_that_cannot_page_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"model": {"name": "bloom-560m", "config": {"n_layer": 2, "hidden_size": 64, "n_head": 4}}}
    plain = memgpt.load(flags | {"model.weights": "random"})
    assert use_paged_kv_cache_if_available(plain) is plain
    assert "no paged KV cache: its attention is not known to read pages" in capsys.readouterr().err
