"""LSH attention: what it computes, what it takes, and that no lens is surprised by it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mem_gpt_cli.attention.lsh import attend
from mem_gpt_cli.attention.lsh_interface import register
from mem_gpt_cli.attention.plan import Lsh, factors
from mem_gpt_cli.errors import RecipeError, UnsupportedError
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.profile import profile
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.trace import trace
from tests.profiled import GPT2, LLAMA, small_recipe

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "config": {**GPT2["config"], "n_positions": 9000}, "dropout": 0.0},
    "llama": LLAMA,
}
HASHING = {"backend": "lsh", "rounds": 2, "chunk": 16}
LONG = {
    "inference": {"batch": 2, "prompt_tokens": 200, "new_tokens": 3},
    "training": {"batch": 2, "seq": 200},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(tokens: int, *, heads: int = 4, key_heads: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    shapes = [(2, count, tokens, 8) for count in (heads, key_heads, key_heads)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def padding(tokens: int) -> torch.Tensor:
    """The first sequence is padded by seven tokens on the left."""
    return torch.arange(tokens) >= torch.tensor([[7], [0]])


def full(query: Any, key: Any, value: Any, keep: torch.Tensor | None) -> torch.Tensor:
    """Causal softmax attention, written as plainly as can be."""
    tokens, groups = query.shape[2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
    if keep is not None:
        seen = seen & keep[:, None, None] | torch.eye(tokens, dtype=torch.bool)
    scores = (query @ key.transpose(-1, -2) / math.sqrt(8)).masked_fill(~seen, torch.finfo(query.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("lsh", [Lsh(2, 1, 8), Lsh(1, None, 32)], ids=["one bucket", "two chunks' length"])
@pytest.mark.parametrize("padded", [False, True])
def test_one_bucket_is_full_attention(lsh: Lsh, padded: bool) -> None:
    given = inputs(45)
    keep = padding(45) if padded else None
    ours = attend(*given, keep, lsh.cut(45), 1 / math.sqrt(8), 0)
    exact = full(*given, keep)
    real = slice(None) if keep is None else keep
    torch.testing.assert_close(ours[real], exact[real], rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(ours) * (1 if keep is None else keep[:, :, None, None])
    grads = [torch.autograd.grad((out * weights).sum(), given) for out in (ours, exact)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def weights_of(query: Any, key: Any, keep: torch.Tensor | None, lsh: Lsh) -> torch.Tensor:
    """How much each query takes of each token, ``[batch, tokens, heads, tokens]``."""
    tokens = query.shape[2]
    tell_apart = torch.eye(tokens).expand(2, key.shape[1], tokens, tokens)
    with torch.no_grad():
        return attend(query, key, tell_apart, keep, lsh.cut(tokens), 1 / math.sqrt(8), 0)


@pytest.mark.parametrize("padded", [False, True])
def test_it_is_the_softmax_over_the_keys_that_are_found(padded: bool) -> None:
    tokens, lsh = 75, Lsh(2, 8, 8)
    query, key, _ = inputs(tokens)
    keep = padding(tokens) if padded else None
    taken = weights_of(query, key, keep, lsh)
    found = taken > 0
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    real = torch.ones(2, tokens, dtype=torch.bool) if keep is None else keep
    both = real[:, :, None, None] & real[:, None, None]
    near = torch.arange(tokens)[:, None] // 8 - torch.arange(tokens) // 8 <= 1
    neighbours = ((causal & near)[:, None] & both).expand_as(found)
    assert not found[real][~(causal[:, None] & both).expand_as(found)[real]].any(), "of the future or padding"
    assert found[neighbours].all()
    assert (found & both).sum() > neighbours.sum(), "nothing is found by hashing"
    scores = (query @ key.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(8)).transpose(1, 2)
    expected = scores.masked_fill(~found, -math.inf).softmax(-1)
    torch.testing.assert_close(taken[real], expected[real], rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_the_softmax_over_the_same_keys() -> None:
    tokens, lsh = 75, Lsh(2, 8, 8)
    query, key, value = given = inputs(tokens)
    found = weights_of(query, key, None, lsh) > 0
    scores = (query @ key.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(8)).transpose(1, 2)
    exact = torch.einsum(
        "bnhm,bhmd->bnhd", scores.masked_fill(~found, -math.inf).softmax(-1), value.repeat_interleave(2, 1)
    )
    ours = attend(*given, None, lsh.cut(tokens), 1 / math.sqrt(8), 0)
    weights = torch.randn_like(ours)
    grads = [torch.autograd.grad((out * weights).sum(), given) for out in (ours, exact)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_one_bucket_generates_the_same_tokens_as_eager(model: str) -> None:
    from mem_gpt_cli.workload.text_model import load

    recipe = small_recipe(MODELS[model], "inference")
    torch.manual_seed(0)
    prompts = torch.randint(1, 500, (2, 40))
    mask = torch.ones_like(prompts)
    mask[0, :11] = 0
    loaded: Any = load(recipe).model
    texts = []
    for name in ("eager", register(Lsh(2, 1, 8))):
        loaded.set_attn_implementation(name)
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        texts.append(loaded.generate(input_ids=prompts, attention_mask=mask, **options))
    assert torch.equal(*texts)


@pytest.mark.parametrize(("model", "task"), [("gpt2", "inference"), ("llama", "training")])
def test_all_lenses_agree(model: str, task: str) -> None:
    layers = {"gpt2": {"n_layer": 2}, "llama": {"num_hidden_layers": 2}}[model]
    shape = {**MODELS[model], "config": {**MODELS[model]["config"], **layers}}
    recipe = small_recipe(shape, task, attention=HASHING, workload=LONG[task])
    measured, traced, predicted = profile(recipe, passes="memory"), trace(recipe), estimate(recipe)
    assert measured.details["attention_kernels"][0] == "lsh"
    assert traced.details["attention_kernels"] == measured.details["attention_kernels"]
    for real, dry, formula in zip(measured.phases, traced.phases, predicted.phases, strict=True):
        assert dry.peak_allocated_bytes == pytest.approx(real.peak_allocated_bytes, rel=1e-4, abs=4096)
        assert formula.peak_allocated_bytes == pytest.approx(dry.peak_allocated_bytes, rel=0.01, abs=4096)


def activations(backend: str, tokens: int) -> int:
    """Bytes of a prefill beyond weights and cache, traced."""
    settings = {"backend": backend}
    model = {
        **MODELS["gpt2"],
        "config": {**MODELS["gpt2"]["config"], "n_layer": 1, "n_inner": 64, "vocab_size": 50},
    }
    recipe = small_recipe(
        model, "inference", attention=settings, workload={"prompt_tokens": tokens, "new_tokens": 1}
    )
    prefill = next(phase for phase in trace(recipe).phases if phase.name == "prefill")
    return prefill.components["activations"] + prefill.components["workspace"]


def test_memory_grows_with_the_length_not_with_its_square() -> None:
    growth = {
        backend: math.log2(activations(backend, 8192) / activations(backend, 2048)) / 2
        for backend in ("eager", "lsh")
    }
    assert growth["eager"] > 1.9
    assert growth["lsh"] < 1.1


def test_buckets_are_even_factors() -> None:
    assert [factors(buckets) for buckets in (2, 16, 64, 128, 34)] == [(2,), (16,), (8, 8), (16, 8), (34,)]
    for tokens in (129, 1000, 8192):
        cut = Lsh.of(load_recipe(overrides=["attention.backend=lsh"]).attention).cut(tokens)
        assert cut.slots >= tokens > cut.slots - cut.chunk
        assert math.prod(cut.hashes) == cut.buckets >= 2 * cut.chunks


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("attention.rounds=2", "belongs to lsh"),
        ("attention.backend=lsh attention.buckets=7", "odd"),
        ("attention.backend=lsh attention.buckets=1 attention.chunk=8", "leave it out"),
        ("attention.backend=lsh kv_cache.kind=paged", "paged"),
    ],
)
def test_settings_without_effect_are_refused(settings: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        estimate(load_recipe(overrides=settings.split()))


@pytest.mark.parametrize("lens", [estimate, trace])
def test_dropout_of_weights_and_foreign_code_are_refused(lens: Any) -> None:
    training = small_recipe(GPT2, "training", attention={"backend": "lsh"})
    with pytest.raises(UnsupportedError, match="attn_pdrop"):
        lens(training)
    with pytest.raises(UnsupportedError, match="choose eager"):
        lens(load_recipe(overrides=["model.name=gpt-j-6b", "attention.backend=lsh"]))
