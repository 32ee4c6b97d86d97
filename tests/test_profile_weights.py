"""Real weights: read from every kind of folder into memory that the model owns."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import mem_gpt_cli as memgpt
from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.model import resolve, tiny
from mem_gpt_cli.profile import profile
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.trace import trace
from mem_gpt_cli.workload.build import build
from mem_gpt_cli.workload.threads import intra_op_threads

SHAPE = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 100, "n_positions": 64}
WORKLOAD = {"prompt_tokens": 16, "new_tokens": 2}


def stored_model(folder: Path, **options: Any) -> GPT2LMHeadModel:
    """A small GPT-2 with random weights, saved as transformers saves it."""
    torch.manual_seed(7)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE)).eval()
    model.save_pretrained(folder, **options)
    return model


def recipe_of(folder: Path, **model: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": str(folder), **model},
            "workload": WORKLOAD,
            "device": {"name": "cpu", "threads": 1},
        }
    )


def rebuilt(folder: Path, **model: Any) -> torch.nn.Module:
    recipe = recipe_of(folder, **model)
    return build(resolve(recipe.model), recipe).eval()


def assert_same_weights(built: torch.nn.Module, stored: torch.nn.Module) -> None:
    own, other = built.state_dict(), stored.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
def test_a_folder_of_safetensors_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    stored = stored_model(tmp_path, **options)
    built = rebuilt(tmp_path)
    assert_same_weights(built, stored)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(built(tokens).logits, stored(tokens).logits)


def test_tied_weights_stay_one_tensor(tmp_path: Path) -> None:
    stored_model(tmp_path)
    built = rebuilt(tmp_path)
    assert built.lm_head.weight is built.transformer.wte.weight  # type: ignore[union-attr]


def test_names_of_another_shape_are_translated_by_transformers(tmp_path: Path) -> None:
    """The first GPT-2 checkpoints lack the prefix `transformer.`."""
    stored = stored_model(tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {name.removeprefix("transformer."): tensor.clone() for name, tensor in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    assert_same_weights(rebuilt(tmp_path), stored)


def test_a_dtype_is_converted_on_the_way(tmp_path: Path) -> None:
    stored = stored_model(tmp_path)
    built = rebuilt(tmp_path, dtype="bf16")
    assert torch.equal(built.transformer.wte.weight, stored.transformer.wte.weight.bfloat16())  # type: ignore[union-attr, operator]


def test_random_weights_are_not_the_stored_ones(tmp_path: Path) -> None:
    stored = stored_model(tmp_path)
    built = rebuilt(tmp_path, weights="random")
    assert not torch.equal(built.transformer.wte.weight, stored.transformer.wte.weight)  # type: ignore[union-attr]


def test_weights_are_owned_and_counted_as_in_the_trace(tmp_path: Path) -> None:
    stored_model(tmp_path)
    recipe = recipe_of(tmp_path)
    report, predicted = profile(recipe, passes="memory"), trace(recipe)
    assert report.warnings == ()
    for phase in report.phases:
        said = predicted.phase(phase.name)
        assert said is not None
        assert said.components["weights"] == phase.components["weights"] >= 4 * report.model.parameters
        assert abs(said.peak_allocated_bytes - phase.peak_allocated_bytes) <= 4096


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def no_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 5) + b"hello" + b"\0" * 100)


def too_short(file: Path) -> None:
    file.write_bytes(b"abc")


def lacking(file: Path) -> None:
    tensors = load_file(file)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("harm", [cut_short, no_header, too_short])
def test_a_broken_file_is_one_sentence(tmp_path: Path, harm: Any) -> None:
    stored_model(tmp_path)
    harm(tmp_path / "model.safetensors")
    with pytest.raises(EnvironmentUnavailableError, match=r"fetch .+ again") as caught:
        rebuilt(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_weight_is_never_left_random(tmp_path: Path) -> None:
    stored_model(tmp_path)
    lacking(tmp_path / "model.safetensors")
    with pytest.raises(EnvironmentUnavailableError, match=r"c_fc\.weight"):
        rebuilt(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    stored_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_positions": 32, "n_ctx": 32}))
    with pytest.raises(EnvironmentUnavailableError, match="wpe"):
        rebuilt(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with intra_op_threads(1):
        yield


has_tiny = pytest.mark.skipif(
    not (tiny.folder() / "model.safetensors").is_file(), reason="memgpt-tiny is not trained yet"
)


@has_tiny
def test_load_gives_text_for_text() -> None:
    text = memgpt.load({"model.name": "memgpt-tiny"}).generate("My fellow citizens,", new_tokens=12)
    assert text.startswith("My fellow citizens,")
    assert len(text.split()) > 5


def test_a_model_without_a_tokenizer_says_so() -> None:
    loaded = memgpt.load({"model.name": "gpt2", "model.config": SHAPE})
    assert loaded.tokenizer is None
    with pytest.raises(EnvironmentUnavailableError, match="tokenizer"):
        loaded.generate("text")


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """A Llama as llama.cpp converts it: queries and keys with their rotary halves interleaved."""
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            count = heads if "q_proj" in name else kv_heads
            halves = values.reshape(count, 2, values.shape[0] // count // 2, -1)
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_unpacked_into_memory_of_our_own(tmp_path: Path) -> None:
    torch.manual_seed(3)
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**shape, vocab_size=90, intermediate_size=64, max_position_embeddings=128)
    stored = LlamaForCausalLM(config).eval()
    write_gguf(tmp_path / "small.gguf", stored)
    assert_same_weights(rebuilt(tmp_path / "small.gguf"), stored)
    report = profile(recipe_of(tmp_path / "small.gguf"), passes="memory")
    assert report.warnings == ()
    assert all(phase.components["weights"] >= 4 * report.model.parameters for phase in report.phases)
