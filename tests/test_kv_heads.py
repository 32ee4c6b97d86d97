"""Fewer key-value heads: the pooled weights, the config, the folder that is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mem_gpt_cli.attention.kv_heads import POOLED, source_of
from mem_gpt_cli.errors import EnvironmentUnavailableError, RecipeError, UsageError
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.profile import profile
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.trace import trace
from mem_gpt_cli.workload.save import save
from mem_gpt_cli.workload.text_model import load
from tests.profiled import small_recipe

LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 64,
    "vocab_size": 90,
    "attention_bias": True,
}
GPT2 = {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 90, "n_positions": 64, "bos_token_id": 1}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**GPT2)).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def recipe_of(folder: Path, heads: int | None) -> Recipe:
    return Recipe.model_validate({"model": {"name": str(folder)}, "attention": {"kv_heads": heads}})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=torch.arange(40)[None]).logits
    return out


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_llama_is_pooled_as_the_paper_says(llama: Path, heads: int) -> None:
    """The reference keeps six heads, each with the mean of its group: the same model, written at length."""
    reference: Any = load(recipe_of(llama, None)).model
    for layer in reference.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            for tensor in (projection.weight.data, projection.bias.data):
                groups = tensor.view(heads, 6 // heads, 8, *tensor.shape[1:])
                groups.copy_(groups.mean(1, keepdim=True).expand_as(groups))
    converted: Any = load(recipe_of(llama, heads)).model
    assert converted.config.num_key_value_heads == heads
    assert converted.model.layers[0].self_attn.k_proj.weight.shape == (8 * heads, 48)
    torch.testing.assert_close(logits(converted), logits(reference))


def test_gpt2_becomes_multi_query(gpt2: Path) -> None:
    reference: Any = load(recipe_of(gpt2, None)).model
    for block in reference.transformer.h:
        for tensor in (block.attn.c_attn.weight.data, block.attn.c_attn.bias.data):
            for part in tensor.split(48, dim=-1)[1:]:
                groups = part.unflatten(-1, (4, 12))
                groups.copy_(groups.mean(-2, keepdim=True).expand_as(groups))
    converted: Any = load(recipe_of(gpt2, 1)).model
    assert type(converted).__name__ == "GPTBigCodeForCausalLM"
    torch.testing.assert_close(logits(converted), logits(reference), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "heads"), [("llama", 2), ("gpt2", 1)])
def test_what_is_saved_is_a_normal_model(
    name: str, heads: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(name)
    saved = save(recipe_of(folder, heads), tmp_path / "out")
    assert any("uptraining" in note for note in saved.source.notes)
    expected = logits(saved.model)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected)
    torch.testing.assert_close(logits(load(recipe_of(tmp_path / "out", None)).model), expected)
    with pytest.raises(UsageError, match="holds a model already"):
        save(recipe_of(folder, heads), tmp_path / "out")


def test_a_model_without_weights_is_not_saved(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **LLAMA}))
    with pytest.raises(EnvironmentUnavailableError, match="not at hand"):
        save(recipe_of(tmp_path / "config.json", 2), tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "heads", "says"),
    [
        ("gpt2", 2, "write 1"),
        ("gpt2", 5, "no 5 equal groups"),
        ("llama-2-7b", 32, "write fewer"),
        ("llama-2-7b", 5, "no 5 equal groups"),
        ("deepseek-v3", 1, "compresses keys and values"),
        ("gpt-j-6b", 1, "not known to hold keys and values"),
    ],
)
def test_what_cannot_be_pooled_is_refused(model: str, heads: int, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        source_of(load_recipe(overrides=[f"model.name={model}", f"attention.kv_heads={heads}"]))


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ({"name": "gpt2", "config": {**GPT2, "n_positions": 128}}, "training"),
        ({"name": "llama-2-7b", "config": LLAMA}, "inference"),
    ],
    ids=["gpt2-training", "llama-inference"],
)
def test_all_lenses_agree(model: dict[str, Any], task: str) -> None:
    recipe = small_recipe(model, task, attention={"kv_heads": 1})
    measured, traced, predicted = profile(recipe, passes="memory"), trace(recipe), estimate(recipe)
    assert any("uptraining" in warning for warning in predicted.warnings)
    for real, dry, formula in zip(measured.phases, traced.phases, predicted.phases, strict=True):
        assert dry.peak_allocated_bytes == pytest.approx(real.peak_allocated_bytes, rel=1e-4, abs=4096)
        if real.name != "load":  # the formula leaves out what making GPT-BigCode's mask takes
            assert formula.peak_allocated_bytes == pytest.approx(dry.peak_allocated_bytes, rel=0.01, abs=4096)


def test_each_family_has_the_key_and_the_matrices() -> None:
    from mem_gpt_cli.model.families import find_family, read_architecture

    assert len(POOLED) > 20
    for model_type in POOLED:
        family = find_family(model_type)
        assert family is not None
        assert "num_key_value_heads" in family.defaults, model_type
        tensors = read_architecture({"model_type": model_type}, model_type).tensors
        held = {tensor.name.split(".")[-2] for tensor in tensors if tensor.kind == "linear"}
        assert {"k_proj", "v_proj"} <= held, model_type
