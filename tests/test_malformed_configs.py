"""Configs that no model can have: each ends with exit code 2 and one sentence that says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mem_gpt_cli.cli.main import run
from mem_gpt_cli.errors import MemgptError, RecipeError, UsageError
from mem_gpt_cli.model import resolve
from mem_gpt_cli.recipe.schema import Model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

TEXTS = {
    "an empty file": ("", ":1:1: this is not JSON"),
    "a text that is not JSON": ("model_type: llama\n", ":1:1: this is not JSON"),
    "a comma too many": ('{\n  "model_type": "llama",,\n "a": 1}', ":2:25: this is not JSON"),
    "a missing comma": ('{"model_type": "llama"\n "vocab_size": 7}', ":2:2: this is not JSON"),
    "single quotes": ("{'model_type': 'llama'}", ":1:2: this is not JSON"),
    "a comment": ('{\n  // the type\n  "model_type": "llama"}', ":2:3: this is not JSON"),
    "two objects": ('{"model_type": "llama"}\n{"vocab_size": 7}', ":2:1: this is not JSON"),
    "a brace that is never closed": ('{"model_type": "llama"', ":1:23: this is not JSON"),
    "a list": ('["llama"]', ":1:1: a config.json is one object of keys and values, this is a list"),
    "a number": ("7", ":1:1: a config.json is one object of keys and values, this is a single value"),
    "null": ("null", ":1:1: a config.json is one object of keys and values, this is null"),
    "a key given twice": (
        '{"model_type": "llama",\n "vocab_size": 7,\n "vocab_size": 8}',
        ":3:2: the key 'vocab_size' is given twice",
    ),
}

VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "no model type": ({"model_type": None}, "'model_type' is missing"),
    "a model type that is a number": ({"model_type": 3}, "'model_type' is missing"),
    "an encoder": (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        "BertForMaskedLM is not a causal language model",
    ),
    "an encoder and a decoder": (
        {"model_type": "t5", "is_encoder_decoder": True},
        "'t5' is an encoder-decoder",
    ),
    "no layers": ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
    "less than no layers": ({"num_hidden_layers": -2}, "'num_hidden_layers' is -2"),
    "a text for a number": ({"hidden_size": "64"}, "'hidden_size' is '64'; give it a positive whole number"),
    "half a head": ({"num_attention_heads": 4.5}, "'num_attention_heads' is 4.5"),
    "true for a number": ({"vocab_size": True}, "'vocab_size' is True"),
    "null for a number": ({"vocab_size": None}, "'vocab_size' is None"),
    "a list for a number": ({"intermediate_size": [128, 128]}, "'intermediate_size' is [128, 128]"),
    "an empty vocabulary": ({"vocab_size": 0}, "'vocab_size' is 0"),
    "heads that do not divide": (
        {"num_attention_heads": 5, "num_key_value_heads": 5},
        "'hidden_size' (64) cannot be divided by 'num_attention_heads' (5) without a rest",
    ),
    "key heads that do not divide": (
        {"num_key_value_heads": 3},
        "'num_attention_heads' (4) is not a multiple of 'num_key_value_heads' (3)",
    ),
    "a negative head": ({"head_dim": -16}, "'head_dim' is -16"),
    "a dropout above 1": ({"attention_dropout": 1.5}, "'attention_dropout' is 1.5; give it a probability"),
    "a dropout that is a text": ({"attention_dropout": "none"}, "'attention_dropout' is 'none'"),
    "a text for a flag": (
        {"tie_word_embeddings": "yes"},
        "'tie_word_embeddings' is 'yes'; give it true or false",
    ),
    "a number for an activation": ({"hidden_act": 7}, "'hidden_act' is 7; give it a text"),
    "a list for the rotary settings": (
        {"rope_parameters": [1]},
        "'rope_parameters' is [1]; give it a mapping",
    ),
    "a padding token outside": (
        {"pad_token_id": 32000},
        "'pad_token_id' is 32000; give it a token below 'vocab_size' (32000)",
    ),
    "too few layer types": (
        {"layer_types": ["full_attention"] * 3},
        "'layer_types' has 3 entries, the model has 4 layers",
    ),
    "an unknown layer type": ({"layer_types": ["linear"] * 4}, "give it a list of chunked_attention,"),
    "layer types in a text": ({"layer_types": "full_attention"}, "give it a list of chunked_attention,"),
    "more experts than there are": (
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5},
        "'num_experts_per_tok' (5) is more than 'num_local_experts' (4)",
    ),
    "layer numbers in a text": (
        {"model_type": "qwen3_moe", "mlp_only_layers": "0,1"},
        "'mlp_only_layers' is '0,1'; give it a list of whole numbers",
    ),
    "a rotated share above 1": (
        {"model_type": "phi", "partial_rotary_factor": 4},
        "'partial_rotary_factor' is 4; give it a share",
    ),
    "attention types for fewer layers": (
        {"model_type": "gpt_neo", "num_layers": 4, "attention_types": [[["global", "local"], 1]]},
        "'attention_types' names 2 layers, 'num_layers' is 4",
    ),
    "attention types without numbers": (
        {"model_type": "gpt_neo", "num_layers": 4, "attention_types": ["global", "local"]},
        "'attention_types' is ['global', 'local']; give it a list such as",
    ),
    "a text part without a model type": (
        {"model_type": "some_multimodal", "text_config": {"hidden_size": 64}},
        "text_config: 'model_type' is missing",
    ),
    "a text part that is no decoder": (
        {"model_type": "vision_t5", "text_config": {"model_type": "t5", "is_encoder_decoder": True}},
        "text_config: 't5' is an encoder-decoder",
    ),
}


def refused(path: Path) -> MemgptError:
    """The error that the config ends with, after the checks that all of them pass."""
    with pytest.raises(UsageError) as caught:
        resolve(Model(name=str(path)))
    error = caught.value
    assert error.exit_code == 2
    assert str(error).startswith(str(path))
    assert "\n" not in str(error)
    assert error.__cause__ is None
    return error


def written(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_that_is_no_config_is_refused_with_its_position(case: str, tmp_path: Path) -> None:
    text, message = TEXTS[case]
    path = tmp_path / "config.json"
    path.write_text(text)
    error = refused(path)
    assert isinstance(error, RecipeError)
    assert str(error).startswith(f"{path}{message}")


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_no_model_can_have_is_refused_with_its_key(case: str, tmp_path: Path) -> None:
    changes, message = VALUES[case]
    assert message in str(refused(written(tmp_path, LLAMA | changes)))


def test_the_config_that_the_others_spoil_is_a_good_one(tmp_path: Path) -> None:
    assert resolve(Model(name=str(written(tmp_path, LLAMA)))).architecture.parameters > 0


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"model_type": "\xff\xfe"}')
    assert "byte 16 is not UTF-8" in str(refused(path))


def test_values_nested_without_end(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": ' + "[" * 100_000)
    assert "nested too deeply" in str(refused(path))


def test_the_command_prints_the_sentence_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, LLAMA | {"num_hidden_layers": 0})
    assert run(["estimate", "--model", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"memgpt: error: {path}: 'num_hidden_layers' is 0; give it a positive whole number\n"
    )
