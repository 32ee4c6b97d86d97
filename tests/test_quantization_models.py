"""Whole models with quantized weights: what is replaced, loaded, saved, and computed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mem_gpt_cli as memgpt
from mem_gpt_cli.errors import EnvironmentUnavailableError, RecipeError, UnsupportedError, UsageError
from mem_gpt_cli.ledger.allocator import record_allocator
from mem_gpt_cli.model import resolve
from mem_gpt_cli.quantization.modules import parameter_count, quantized_layers, stored_tensors
from mem_gpt_cli.quantization.saved import as_saved, save_quantized
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.build import build, build_on_meta
from mem_gpt_cli.workload.save import save

GPT2 = {
    "name": "gpt2",
    "weights": "random",
    "config": {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 300, "n_positions": 64},
}
LLAMA = {
    "name": "smollm2-135m",
    "weights": "random",
    "config": {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
    },
}
MODELS = {"gpt2": GPT2, "llama": LLAMA}
METHODS: dict[str, dict[str, Any]] = {
    "nf4": {"scheme": "nf4"},
    "nf4 plain": {"scheme": "nf4", "double_quant": False, "group_size": 32},
    "fp4": {"scheme": "fp4"},
    "int8": {"scheme": "int8"},
    "native int8": {"scheme": "int8", "backend": "native"},
    "native int4": {"scheme": "int4", "mapping": "asymmetric", "group_size": 16},
    "torchao int8": {"scheme": "int8", "backend": "torchao"},
    "torchao asymmetric": {"scheme": "int8", "backend": "torchao", "mapping": "asymmetric"},
    "torchao int4": {"scheme": "int4", "backend": "torchao", "group_size": 32},
}
ROUGHLY = {"nf4": 0.12, "nf4 plain": 0.12, "fp4": 0.2, "native int4": 0.12, "torchao int4": 0.12}
"""Mean error of a weight by the mean of its size, at most; 8 bits 0.02."""


def recipe_of(model: dict[str, Any], **quantization: Any) -> Recipe:
    return Recipe.model_validate({"model": model, "quantization": quantization})


def built(recipe: Recipe) -> torch.nn.Module:
    torch.manual_seed(recipe.workload.seed)
    return build(resolve(recipe.model), recipe).eval()


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_the_layers_matrices_are_those_of_the_full_model_quantized(family: str, method: str) -> None:
    """Of the same seed: random values are drawn in the same order, so only rounding is between them."""
    full = built(recipe_of(MODELS[family]))
    model = built(recipe_of(MODELS[family], **METHODS[method]))
    layers = dict(quantized_layers(model))
    assert len(layers) == {"gpt2": 4, "llama": 7}[family] * 2
    for path, layer in layers.items():
        plain = full.get_submodule(path)
        weight = plain.weight.t() if family == "gpt2" else plain.weight
        error = (layer.dequantized() - weight).abs().mean() / weight.abs().mean()
        assert 0 < error < ROUGHLY.get(method, 0.02), path
        if plain.bias is not None:
            assert torch.equal(layer.bias, plain.bias)
    kept = {name: p for name, p in full.named_parameters() if name.rpartition(".")[0] not in layers}
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], p) for name, p in kept.items())


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_quantized_model_computes_with_the_stored_values(family: str, method: str) -> None:
    """The full model with these values in its matrices says the same; int8 rounds its inputs as well."""
    model = built(recipe_of(MODELS[family], **METHODS[method]))
    full = built(recipe_of(MODELS[family]))
    with torch.no_grad():
        for path, layer in quantized_layers(model):
            weight = full.get_submodule(path).weight
            weight.copy_(layer.dequantized().t() if family == "gpt2" else layer.dequantized())
        tokens = torch.arange(2, 26)[None]
        found, expected = model(tokens).logits, full(tokens).logits
    scale = expected.abs().max()
    assert (found - expected).abs().max() < (0.05 if method == "int8" else 2e-3) * scale


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_back_to_the_bit(family: str, method: str, tmp_path: Path) -> None:
    recipe = recipe_of(MODELS[family], **METHODS[method])
    model = built(recipe)
    save_quantized(model, tmp_path / "saved", resolve(recipe.model), recipe)
    plain = Recipe.model_validate({"model": {"name": str(tmp_path / "saved")}})
    source = resolve(plain.model)
    again = build(source, as_saved(plain, source)).eval()
    for (path, layer), (_, other) in zip(quantized_layers(model), quantized_layers(again), strict=True):
        for name, part in layer.parts().items():
            assert torch.equal(part, other.parts()[name]), (path, name)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


def test_a_saved_folder_refuses_another_quantization(tmp_path: Path) -> None:
    recipe = recipe_of(GPT2, scheme="int4")
    save_quantized(built(recipe), tmp_path / "saved", resolve(recipe.model), recipe)
    other = recipe_of({"name": str(tmp_path / "saved")}, scheme="int8")
    with pytest.raises(RecipeError, match="were saved as int4"):
        as_saved(other, resolve(other.model))


def test_a_saved_folder_takes_its_own_defaults_written_out(tmp_path: Path) -> None:
    recipe = recipe_of(GPT2, scheme="int4")
    save_quantized(built(recipe), tmp_path / "saved", resolve(recipe.model), recipe)
    folder = {"name": str(tmp_path / "saved")}
    spelled = recipe_of(folder, scheme="int4", backend="native", group_size=64, mapping="symmetric")
    assert as_saved(spelled, resolve(spelled.model)).quantization.scheme == "int4"
    coarser = recipe_of(folder, scheme="int4", group_size=32)
    with pytest.raises(RecipeError, match="were saved as int4"):
        as_saved(coarser, resolve(coarser.model))


def test_a_tied_embedding_and_head_share_one_packed_table() -> None:
    for word in ("embeddings", "head"):
        recipe = recipe_of(GPT2, overrides={word: {"scheme": "int8", "backend": "native"}})
        model = built(recipe)
        head, table = model.lm_head, model.transformer.wte  # type: ignore[union-attr]
        assert all(part is table.parts()[name] for name, part in head.parts().items())
        full = built(recipe_of(GPT2))
        tokens = torch.arange(20)[None]
        with torch.no_grad():
            full.lm_head.weight.copy_(table.dequantized())  # type: ignore[union-attr]
            assert torch.allclose(model(tokens).logits, full(tokens).logits, atol=1e-5)


def test_overrides_mix_precisions() -> None:
    recipe = recipe_of(
        LLAMA,
        scheme="int8",
        overrides={
            "*.mlp.*": {"scheme": "int4"},
            "model.layers.1.*": {"scheme": "none"},
            "*.1.mlp.up_proj": {"scheme": "nf4"},
        },
    )
    stored = {path: layer.method.scheme for path, layer in quantized_layers(built(recipe))}
    assert stored["model.layers.0.self_attn.q_proj"] == "int8"
    assert stored["model.layers.0.mlp.down_proj"] == "int4"
    assert [path for path in stored if ".1." in path] == ["model.layers.1.mlp.up_proj"]
    assert stored["model.layers.1.mlp.up_proj"] == "nf4"


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    recipe = recipe_of(GPT2, scheme="int8", overrides={"*.mpl.*": {"scheme": "int4"}})
    with pytest.raises(RecipeError, match=r"'\*\.mpl\.\*' matches no matrix of gpt2"):
        build_on_meta(resolve(recipe.model), recipe)


def test_a_backend_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.endswith("quantization.bitsandbytes_layers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    recipe = recipe_of(GPT2, scheme="nf4")
    with pytest.raises(EnvironmentUnavailableError, match="install memgpt's extra 'quantization'"):
        build_on_meta(resolve(recipe.model), recipe)


def test_embeddings_are_stored_by_our_own_layer_alone() -> None:
    recipe = recipe_of(GPT2, overrides={"embeddings": {"scheme": "nf4"}})
    with pytest.raises(
        UnsupportedError, match="cannot store this embedding in nf4: choose int8 or int4 of native"
    ):
        build_on_meta(resolve(recipe.model), recipe)


def test_rows_that_are_no_whole_blocks_are_refused_on_the_cpu() -> None:
    """bitsandbytes' CPU kernel reads them with other rows' scales; on CUDA it does not."""
    recipe = recipe_of(GPT2, scheme="nf4", group_size=128)
    with pytest.raises(UnsupportedError, match="64 inputs in blocks of 128"):
        build_on_meta(resolve(recipe.model), recipe)
    data = recipe.model_dump(exclude_unset=True) | {"device": {"name": "h100"}}
    on_card = Recipe.model_validate(data)
    assert list(quantized_layers(build_on_meta(resolve(on_card.model), on_card)))


@pytest.mark.parametrize("method", METHODS)
def test_no_second_matrix_is_in_full_while_loading(method: str) -> None:
    """Above what stays, never more than the largest matrix and what quantizing it takes."""
    shape = {**GPT2["config"], "n_layer": 3, "n_embd": 256}  # type: ignore[dict-item]
    recipe = recipe_of({**GPT2, "config": shape}, **METHODS[method])
    source = resolve(recipe.model)
    build_on_meta(source, recipe)  # what is made once a process
    with record_allocator() as record:
        model = build(source, recipe)
    live = peak = 0
    for event in record.events:
        live += event.nbytes
        peak = max(peak, live)
    plain = [tensor for tensor in stored_tensors(model) if not hasattr(tensor, "__tensor_flatten__")]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in plain}
    largest = 4 * 256 * 1024  # weights of an MLP's matrix
    at_most = 4 + {"fp4": 24, "torchao int4": 24}.get(method, 14)  # bytes a weight, itself in fp32 among them
    assert peak - sum(storages.values()) <= at_most * largest / 4
    assert peak < 4 * parameter_count(build_on_meta(source, recipe_of({**GPT2, "config": shape})))


def test_the_number_of_parameters_is_that_of_the_full_model() -> None:
    for model in MODELS.values():
        head = {"head": {"scheme": "int8", "backend": "native"}}
        recipes = (recipe_of(model), recipe_of(model, scheme="nf4", overrides=head))
        counts = {parameter_count(build_on_meta(resolve(each.model), each)) for each in recipes}
        assert len(counts) == 1


@pytest.mark.parametrize("quantization", [{"scheme": "int4"}, {}], ids=["int4", "in full"])
def test_a_saved_text_model_says_the_same(quantization: dict[str, Any], tmp_path: Path) -> None:
    """With its tokenizer; a model in full is saved as transformers has it."""
    model = memgpt.load({"model": {"name": "memgpt-tiny"}, "quantization": quantization})
    model.save(tmp_path / "saved")
    again = memgpt.load({"model": {"name": str(tmp_path / "saved")}})
    assert again.generate("The", new_tokens=12) == model.generate("The", new_tokens=12)
    assert again.recipe.quantization.scheme == quantization.get("scheme", "none")
    with pytest.raises(UsageError, match="holds a model already"):
        model.save(tmp_path / "saved")


@pytest.fixture(scope="module")
def saved_tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("saved") / "int4"
    recipe = {"model": {"name": "memgpt-tiny", "dtype": "bf16"}, "quantization": {"scheme": "int4"}}
    memgpt.load(recipe).save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"attention": {"kv_heads": 1}}, "attention.kv_heads: .* codes have no mean"),
        ({"task": "training", "workload": {"seq": 16}}, "task: .* cannot be trained"),
    ],
)
def test_all_lenses_refuse_what_packed_weights_cannot_do(
    saved_tiny: str, other: dict[str, Any], sentence: str
) -> None:
    recipe = Recipe.model_validate({"model": {"name": saved_tiny}, **other})
    for lens in (memgpt.estimate, memgpt.trace, memgpt.profile):
        with pytest.raises(RecipeError, match=sentence):
            lens(recipe)


@pytest.mark.parametrize("weights", ["auto", "random"])
def test_lenses_agree_on_loading_a_folder_that_was_saved_quantized(saved_tiny: str, weights: str) -> None:
    """Its codes are never in full; random weights are quantized as the folder's are."""
    data = {"model": {"name": saved_tiny, "dtype": "bf16", "weights": weights}, "workload": {"seq": 8}}
    recipe = Recipe.model_validate(data)
    load = [lens(recipe).phases[0].peak_allocated_bytes for lens in (memgpt.estimate, memgpt.trace)]
    assert load[0] == load[1]
    plain = {"model": {"name": "memgpt-tiny", "dtype": "bf16"}, "quantization": {"scheme": "int4"}}
    quantizing = memgpt.estimate(Recipe.model_validate(plain | {"workload": {"seq": 8}}))
    assert (load[0] < quantizing.phases[0].peak_allocated_bytes) == (weights == "auto")


def test_a_saved_folder_is_saved_again_as_it_is(saved_tiny: str, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"model": {"name": saved_tiny, "dtype": "bf16"}})
    save(recipe, tmp_path / "again")
    first, again = (Path(folder) / "model.safetensors" for folder in (saved_tiny, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"
