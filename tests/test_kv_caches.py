"""Every cache generates what eager attention with a dynamic cache does, for prompts of unlike lengths too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import EnvironmentUnavailableError, RecipeError, UnsupportedError
from mem_gpt_cli.estimate.dialect import dialect_of
from mem_gpt_cli.kv_cache import build as cache_build
from mem_gpt_cli.kv_cache.build import new_cache
from mem_gpt_cli.kv_cache.padding import left_padding, positions
from mem_gpt_cli.kv_cache.window import WINDOWED_TYPES
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload import Inference, Unobserved
from mem_gpt_cli.workload.build import build, build_on_meta
from mem_gpt_cli.workload.inference import State

GPT2 = (
    "model.name=gpt2",
    "model.config={n_layer: 3, n_embd: 48, n_head: 4, vocab_size: 211, n_positions: 128}",
)
LLAMA = (
    "model.name=tinyllama-1.1b",
    "model.config={num_hidden_layers: 3, hidden_size: 48, num_attention_heads: 6, num_key_value_heads: 2, "
    "head_dim: 8, intermediate_size: 96, vocab_size: 211, max_position_embeddings: 128}",
)
TINY = ("model.name=memgpt-tiny",)
MODELS = {"gpt2": GPT2, "llama": LLAMA, "memgpt-tiny": TINY}
UNLIKE = [3, 21, 9, 14]
NEW = 12


def recipe_of(model: str, *overrides: str) -> Recipe:
    return load_recipe(None, overrides=[*MODELS[model], f"workload.new_tokens={NEW}", *overrides])


_built: dict[tuple[str, str, int | None], torch.nn.Module] = {}


def lively(recipe: Recipe) -> torch.nn.Module:
    """The model with its matrices enlarged, so that what it says hangs on every token before."""
    key = (recipe.model.name, recipe.attention.backend, recipe.kv_cache.window)
    if key not in _built:
        _built[key] = _lively(recipe)
    return _built[key]


def _lively(recipe: Recipe) -> torch.nn.Module:
    torch.manual_seed(1)
    model = build(source_of(recipe), recipe).eval()
    if recipe.model.name != "memgpt-tiny":
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(6)
    return model


def prompts_of(lengths: Sequence[int], vocabulary: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]


def padded(prompts: Sequence[torch.Tensor]) -> torch.Tensor:
    longest = max(map(len, prompts))
    return torch.stack([torch.nn.functional.pad(p, (longest - len(p), 0), value=7) for p in prompts])


def generate(recipe: Recipe, prompts: Sequence[torch.Tensor]) -> list[list[int]]:
    sequence = Inference(recipe).run(lively(recipe), padded(prompts), Unobserved())
    return [row[-NEW:].tolist() for row in sequence]


def one_by_one(model: str, prompts: Sequence[torch.Tensor]) -> list[list[int]]:
    """Each request alone, with eager attention and a dynamic cache."""
    found = []
    for prompt in prompts:
        recipe = recipe_of(model, "attention.backend=eager", f"workload.prompt_tokens={len(prompt)}")
        found += generate(recipe, [prompt])
    return found


def vocabulary(model: str) -> int:
    return build_on_meta(source_of(recipe_of(model)), recipe_of(model)).config.vocab_size  # type: ignore[union-attr, return-value]


@pytest.fixture(scope="module", params=MODELS)
def family(request: pytest.FixtureRequest) -> tuple[str, list[torch.Tensor], list[list[int]]]:
    """A model, unlike prompts for it, and what each of them goes on with when it is alone."""
    model = request.param
    prompts = prompts_of(UNLIKE, vocabulary(model))
    expected = one_by_one(model, prompts)
    assert len({token for row in expected for token in row}) > NEW, "the tokens say too little to compare"
    return model, prompts, expected


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
def test_unlike_prompts_in_one_batch_go_on_as_each_does_alone(
    family: Any, cache: str, attention: str
) -> None:
    model, prompts, expected = family
    recipe = recipe_of(
        model,
        f"workload.requests={UNLIKE}",
        f"kv_cache.kind={cache}",
        f"attention.backend={attention}",
    )
    assert generate(recipe, prompts) == expected


@pytest.mark.parametrize("cache", ["kind=static", "kind=static kv_cache.max_tokens=77", "kind=none"])
def test_equal_prompts_go_on_as_with_eager_attention_and_a_dynamic_cache(family: Any, cache: str) -> None:
    model, prompts, expected = family
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    overrides = f"kv_cache.{cache}".split()
    recipe = recipe_of(model, f"workload.prompt_tokens={len(prompts[longest])}", *overrides)
    assert generate(recipe, [prompts[longest]]) == [expected[longest]]


def test_fp8_agrees_with_full_precision_on_most_tokens(family: Any) -> None:
    """After the same tokens; a generation of its own leaves the other's at the first that differs."""
    name, prompts, expected = family
    recipe = recipe_of(name, f"workload.requests={UNLIKE}", "kv_cache.kind=quantized")
    model, run = lively(recipe), Inference(recipe)
    told = torch.tensor(expected)
    state = run.prefill(model, padded(prompts), Unobserved())
    assert (
        state.sequence[:, -1].tolist() == told[:, 0].tolist()
    )  # a prefill attends to what is not stored yet
    agreed = 0
    for step in range(1, NEW):
        sequence = torch.cat([padded(prompts), told[:, :step]], dim=1)
        state = run.decode(model, state._replace(sequence=sequence), Unobserved())
        agreed += int((state.sequence[:, -1] == told[:, step]).sum())
    share = agreed / (len(prompts) * (NEW - 1))
    print(f"{name}: fp8 agrees on {share:.0%} of {len(prompts) * (NEW - 1)} tokens")
    assert share > 0.75


@pytest.mark.parametrize("window", [2, 5, 16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_window_is_the_same_in_prefill_and_decode(family: Any, attention: str, window: int) -> None:
    """Each step's logits are those of one pass over the whole sequence under a band mask."""
    name, prompts, _ = family
    lengths = [len(prompt) for prompt in prompts]
    recipe = recipe_of(
        name,
        f"workload.requests={lengths}",
        "kv_cache.kind=sliding",
        f"kv_cache.window={window}",
        f"attention.backend={attention}",
    )
    model = lively(recipe)
    plain = lively(recipe_of(name, "attention.backend=eager"))
    logits: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda *call: logits.append(call[-1].logits[:, -1]))
    sequence = Inference(recipe).run(model, padded(prompts), Unobserved())
    hook.remove()
    mask = left_padding(lengths, sequence.shape[1], sequence.device)
    assert mask is not None
    at = torch.arange(sequence.shape[1])
    band = (at[None] <= at[:, None]) & (at[None] > at[:, None] - window)
    seen = torch.where(band[None, None] & mask[:, None, None].bool(), 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        whole = plain(
            input_ids=sequence, attention_mask=seen, position_ids=positions(mask, sequence.shape[1])
        ).logits
    expected = whole[:, max(lengths) - 1 : -1]
    torch.testing.assert_close(torch.stack(logits, dim=1), expected, rtol=1e-4, atol=1e-3)


def test_a_sliding_cache_keeps_no_more_than_its_window() -> None:
    recipe = recipe_of("llama", "kv_cache.kind=sliding", "kv_cache.window=8", "workload.prompt_tokens=20")
    model, run = lively(recipe), Inference(recipe)
    state = run.prefill(model, prompts_of([20], 211)[0][None], Unobserved())
    for _ in range(3):
        state = run.decode(model, state, Unobserved())
    assert {layer.keys.untyped_storage().nbytes() for layer in state.cache.layers} == {8 * 2 * 8 * 4}


def test_a_window_that_nobody_asked_for_changes_no_mask() -> None:
    """The masks of models without a window of the recipe's are made as before it was known."""
    windowed, plain = (
        recipe_of("gpt2", *more) for more in (("kv_cache.kind=sliding", "kv_cache.window=4"), ())
    )
    prompts = prompts_of([12, 5], 211)
    before = generate(plain.model_copy(), prompts[:1])
    generate(windowed, prompts[:1])
    assert generate(plain, prompts[:1]) == before


@pytest.mark.parametrize("model_type", sorted(WINDOWED_TYPES - {"gpt2", "llama"}))
def test_every_family_that_may_have_a_window_has_it(model_type: str) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from mem_gpt_cli.kv_cache.windowed_masks import WINDOW, _register

    config = CONFIG_MAPPING[model_type](
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=97,
        **({"rotary_dim": 4} if model_type == "gptj" else {}),
        **({"num_key_value_heads": 2, "head_dim": 8} if model_type == "qwen3" else {}),
    )
    config._attn_implementation = "sdpa" if dialect_of(model_type).sdpa else "eager"
    _register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.randint(97, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.config.sliding_window = None
        setattr(model.config, WINDOW, 2)
        near = model(tokens, use_cache=False).logits[:, -1]
        changed = tokens.clone()
        changed[:, :8] = (changed[:, :8] + 1) % 97  # two layers see no further than two tokens each
        torch.testing.assert_close(model(changed, use_cache=False).logits[:, -1], near)
        setattr(model.config, WINDOW, None)
        assert not torch.allclose(model(changed, use_cache=False).logits[:, -1], near)


def test_positions_of_padding_are_zero_and_of_prompts_their_own() -> None:
    mask = left_padding([1, 4, 2], 5, torch.device("cpu"))
    assert mask is not None
    assert mask.tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert positions(mask, 5).tolist() == [[0, 0, 0, 0, 1], [0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]
    assert positions(mask, 1).tolist() == [[1], [4], [2]]
    assert left_padding([4, 4], 4, torch.device("cpu")) is None


def test_a_transformers_without_an_fp8_cache_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import cache_utils

    monkeypatch.delattr(cache_utils, "Fp8QuantizedLayer")
    recipe = recipe_of("gpt2", "kv_cache.kind=quantized")
    with pytest.raises(UnsupportedError, match="has no fp8 cache"):
        new_cache(build_on_meta(source_of(recipe), recipe), recipe)


@pytest.mark.parametrize("stored", ["int4", "int2"])
def test_whole_numbers_need_a_package(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "find_spec", lambda _: None)
    recipe = recipe_of("gpt2", "kv_cache.kind=quantized", f"kv_cache.format={stored}")
    with pytest.raises(EnvironmentUnavailableError, match="hqq or optimum-quanto"):
        new_cache(build_on_meta(source_of(recipe), recipe), recipe)


def test_a_model_with_windows_has_no_quantized_cache() -> None:
    plain = load_recipe(None, overrides=["model.name=mistral-7b-v0.1"])
    recipe = load_recipe(None, overrides=["model.name=mistral-7b-v0.1", "kv_cache.kind=quantized"])
    with pytest.raises(RecipeError, match="has layers with a window"):
        build_on_meta(source_of(recipe), recipe)
    with pytest.raises(UnsupportedError, match="cannot have a quantized cache"):
        new_cache(build_on_meta(source_of(plain), plain), recipe)


def test_windows_of_a_model_and_of_a_recipe_are_not_mixed() -> None:
    for model, window, sentence in (
        ("mistral-7b-v0.1", 64, "has a window of its own"),
        ("gpt2", None, "has no window of its own"),
        ("bloom-560m", 64, "cannot be given a window"),
    ):
        overrides = [f"model.name={model}", "kv_cache.kind=sliding"]
        recipe = load_recipe(None, overrides=[*overrides, *([f"kv_cache.window={window}"] if window else [])])
        with pytest.raises(RecipeError, match=sentence):
            build_on_meta(source_of(recipe), recipe)


def test_a_state_without_padding_has_no_mask() -> None:
    recipe = recipe_of("gpt2", "workload.requests=[6, 6]")
    state = Inference(recipe).prefill(lively(recipe), torch.ones(2, 6, dtype=torch.long), Unobserved())
    assert isinstance(state, State)
    assert state.mask is None
