"""LoRA and QLoRA on models: what is added, what is trained, and what a gradient is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mem_gpt_cli.adapters.apply import adapted_layers, adapter_tensors
from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.model import resolve
from mem_gpt_cli.model.facts import trainable
from mem_gpt_cli.quantization.modules import quantized_layers
from mem_gpt_cli.recipe import load_recipe, refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.trace.cuda.adapters import autocast_without_a_name, int8_in_training
from mem_gpt_cli.workload.build import build

GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 80, "n_positions": 32}
LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 80,
}
MODELS: dict[str, dict[str, Any]] = {"gpt2": GPT2, "tinyllama-1.1b": LLAMA}
SCHEMES: dict[str, dict[str, Any]] = {
    "full": {},
    "nf4": {"scheme": "nf4"},
    "int8": {"scheme": "int8"},
    "native int8": {"scheme": "int8", "backend": "native"},
    "native int4": {"scheme": "int4", "mapping": "asymmetric"},
}
BY_TURNS = [
    ("gpt2", "full"),
    ("tinyllama-1.1b", "full"),
    ("gpt2", "nf4"),
    ("tinyllama-1.1b", "int8"),
    ("gpt2", "native int8"),
    ("tinyllama-1.1b", "native int4"),
]
IDS = torch.arange(24).reshape(2, 12)


def recipe_of(model: str, scheme: str = "full", seed: int = 0, **sections: Any) -> Recipe:
    kind = sections.pop("adapters", {})
    return Recipe.model_validate(
        {
            "model": {"name": model, "config": MODELS[model], "dropout": 0.0},
            "task": "training",
            "workload": {"seed": seed, "seq": 12},
            "quantization": SCHEMES[scheme],
            "adapters": {"kind": "lora" if scheme == "full" else "qlora", **kind},
            **sections,
        }
    )


def built(recipe: Recipe) -> torch.nn.Module:
    torch.manual_seed(recipe.workload.seed)
    return build(resolve(recipe.model), recipe)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Second factors that are not 0, so that the first ones have gradients."""
    torch.manual_seed(5)
    for tensor in adapter_tensors(model):
        tensor.data.normal_(std=0.05)
    return model.train()


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "scheme"), BY_TURNS)
def test_a_fresh_adapter_changes_nothing_and_is_all_that_is_trained(name: str, scheme: str) -> None:
    model = built(recipe_of(name, scheme)).eval()
    plain = recipe_of(name, scheme, adapters={"kind": "none"}, task="inference", workload={"seed": 0})
    without = built(plain).eval()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, without(IDS).logits)
    factors = list(adapter_tensors(model))
    assert [id(p) for p in trainable(model).values()] == [id(p) for p in factors]
    assert {p.dtype for p in factors} == {torch.float32}
    assert {id(p) for p in factors} == {
        id(p) for n, p in randomised(model).named_parameters() if n in gradients(model)
    }


@pytest.mark.parametrize("name", MODELS)
def test_first_values_are_pefts_and_follow_the_seed(name: str) -> None:
    one, same, other = (built(recipe_of(name, seed=seed)) for seed in (0, 0, 1))
    for (_, layer), (_, again), (_, third) in zip(*map(adapted_layers, (one, same, other)), strict=True):
        first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert not second.any()
        bound = layer.in_features**-0.5  # kaiming_uniform_ with a = sqrt(5)
        assert 0 < first.abs().max() <= bound
        assert torch.equal(first, again.lora_A["default"].weight)
        assert not torch.equal(first, third.lora_A["default"].weight)


@pytest.mark.parametrize(("name", "scheme"), BY_TURNS)
def test_gradients_are_those_of_the_merged_matrices(name: str, scheme: str) -> None:
    """With ``W' = W + s * up @ down``: ``d up = s * dW' @ down.T`` and ``d down = s * up.T @ dW'``."""
    model = randomised(built(recipe_of(name, scheme, adapters={"rank": 4, "alpha": 6.0})))
    found = gradients(model)
    plain = copy.deepcopy(model)
    layers = list(adapted_layers(plain))
    for path, layer in layers:
        parent, _, child = path.rpartition(".")
        setattr(plain.get_submodule(parent), child, merged(layer))
    gradients(plain)
    for path, layer in layers:
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        linear: Any = plain.get_submodule(path)
        whole = linear.weight.grad
        expected = {"lora_A": 1.5 * up.t() @ whole, "lora_B": 1.5 * whole @ down.t()}
        for side, gradient in expected.items():
            torch.testing.assert_close(found[f"{path}.{side}.default.weight"], gradient, rtol=1e-3, atol=1e-6)


def merged(layer: Any) -> torch.nn.Linear:
    """One linear layer, in full, with what the adapter adds in it."""
    base = layer.get_base_layer()
    transposed = type(base).__name__ == "Conv1D"
    whole = base.weight.detach().t() if transposed else None
    if whole is None:
        whole = base.dequantized() if hasattr(base, "dequantized") else base.weight.detach()
    whole = whole + 1.5 * layer.lora_B["default"].weight.detach() @ layer.lora_A["default"].weight.detach()
    made = torch.nn.Linear(whole.shape[1], whole.shape[0], bias=base.bias is not None)
    made.weight = torch.nn.Parameter(whole.contiguous())
    if base.bias is not None:
        made.bias = torch.nn.Parameter(base.bias.detach().clone())
    return made


@pytest.mark.parametrize("scheme", ["full", "nf4", "int8", "native int4"])
def test_recomputed_layers_give_the_same_gradients(scheme: str) -> None:
    kept = gradients(randomised(built(recipe_of("tinyllama-1.1b", scheme))))
    again = recipe_of("tinyllama-1.1b", scheme, checkpointing={"policy": "full"})
    found = gradients(randomised(built(again)))
    assert kept.keys() == found.keys()
    assert all(torch.equal(kept[name], found[name]) for name in kept)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_layer_trains_as_bitsandbytes_does_and_holds_no_input(bias: bool, dtype: torch.dtype) -> None:
    import bitsandbytes

    model = built(recipe_of("gpt2" if bias else "tinyllama-1.1b", "int8")).to(dtype).train()
    layer = next(found for _, found in quantized_layers(model))
    one = torch.randn(2, 5, layer.in_features, dtype=dtype, requires_grad=True)
    other = one.detach().clone().requires_grad_()
    found = layer(one)
    expected = bitsandbytes.matmul(other, layer.weight, bias=layer.bias, state=layer.state)
    assert torch.equal(found, expected)
    held = [value for value in vars(found.grad_fn).values() if isinstance(value, Tensor)]
    assert not held
    gradient = torch.randn_like(found)
    found.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_targets_are_paths_or_their_ends() -> None:
    model = built(recipe_of("gpt2", adapters={"targets": ["attn.c_proj", "transformer.h.1.mlp.c_fc"]}))
    assert [path for path, _ in adapted_layers(model)] == [
        "transformer.h.0.attn.c_proj",
        "transformer.h.1.attn.c_proj",
        "transformer.h.1.mlp.c_fc",
    ]
    assert "lm_head" in [path for path, _ in adapted_layers(built(headed(["lm_head"])))]
    assert "lm_head" not in [path for path, _ in adapted_layers(built(headed(None)))]


def headed(targets: list[str] | None) -> Recipe:
    return recipe_of("tinyllama-1.1b", adapters={"targets": targets})


@pytest.mark.parametrize(
    ("model", "target", "sentence"),
    [
        ("gpt2", "c_atn", "did you mean 'c_attn'"),
        ("gpt2", "lm_head", "there are c_attn, c_proj, c_fc"),  # tied to the embedding
        ("tinyllama-1.1b", "wte", "there are q_proj"),
    ],
)
def test_a_target_that_names_nothing_is_an_error(model: str, target: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        built(recipe_of(model, adapters={"targets": [target]}))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["adapters.kind=lora", "quantization.scheme=nf4"], "is 'qlora': write that"),
        (["adapters.kind=lora", "quantization.overrides={head: {scheme: int8}}"], "is 'qlora': write that"),
        (["adapters.kind=qlora", "quantization.scheme=none"], "qlora is lora over quantized weights"),
        (
            ["adapters.kind=qlora", "quantization.scheme=int8", "quantization.backend=torchao"],
            "hand no gradient on",
        ),
        (["quantization.scheme=int8"], "write adapters.kind: qlora"),
    ],
)
def test_what_cannot_be_is_refused(keys: list[str], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        refuse_unavailable(load_recipe(overrides=["model.name=gpt2", "task=training", *keys]), "trace")


def test_a_dry_run_for_cuda_is_asked_for_cudas_autocast_and_integers() -> None:
    from mem_gpt_cli.quantization import bitsandbytes_layers

    layer = next(found for _, found in quantized_layers(built(recipe_of("gpt2", "int8")).train()))
    x = torch.randn(3, layer.in_features)
    with autocast_without_a_name(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled()
        assert not torch.is_autocast_enabled("cuda")
    assert not torch.is_autocast_enabled()
    written_out = layer(x)
    with int8_in_training():
        rounded = layer(x)
    assert not bitsandbytes_layers.rounds_inputs(x)
    assert torch.equal(rounded, layer.eval()(x))
    assert not torch.equal(rounded, written_out)
