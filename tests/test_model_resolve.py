"""Finding a model: paths, the embedded model, the catalogue, GGUF metadata and the hub's cache."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors
from real_models import assert_same

import mem_gpt_cli.model.hub as hub
from mem_gpt_cli.errors import EnvironmentUnavailableError, UnsupportedError, UsageError
from mem_gpt_cli.model import ModelSource, resolve, smollm2
from mem_gpt_cli.model.gguf_metadata import read_head
from mem_gpt_cli.recipe.schema import Model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def find(name: str | Path, **more: Any) -> ModelSource:
    return resolve(Model(name=str(name), **more))


def written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_nothing_heavy_is_imported_to_find_a_model_and_read_it() -> None:
    code = """
import sys
from types import SimpleNamespace as Recipe
from mem_gpt_cli.model import resolve
assert resolve(Recipe(name="gpt2-xl", config={"n_layer": 2}, dropout=0.0)).architecture.parameters > 0
heavy = {"torch", "transformers", "yaml", "pandas", "huggingface_hub", "gguf", "numpy"}
print(sorted(heavy & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_config_file(tmp_path: Path) -> None:
    path = written(tmp_path, LLAMA) / "config.json"
    source = find(path)
    assert (source.origin, source.folder, source.source) == ("path", tmp_path, str(path))
    assert source.config == LLAMA
    assert not source.weights_are_local


def test_a_config_file_of_another_name_has_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(LLAMA))
    assert find(path).folder is None


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"]
)
def test_a_folder_with_weights(name: str, tmp_path: Path) -> None:
    (written(tmp_path, LLAMA) / name).touch()
    source = find(tmp_path)
    assert source.folder == tmp_path
    assert source.weights_are_local


def test_a_safetensors_file_stands_for_its_folder(tmp_path: Path) -> None:
    file = written(tmp_path, LLAMA) / "model.safetensors"
    file.touch()
    assert find(file).folder == tmp_path


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds neither a config.json nor a GGUF file"):
        find(tmp_path)


def test_a_safetensors_file_without_a_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match=r"holds neither a config.json nor a GGUF file"):
        find(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["./nowhere", "nowhere/at/all", "nowhere.json", "~/nowhere/config.json"])
def test_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(
        UsageError, match=r"does not exist; give a config.json, a model folder or a GGUF file"
    ):
        find(name)


@pytest.mark.parametrize("name", ["x" * 5000, "~no-such-user/model", "a\0b", "memgpt-tinny"])
def test_a_name_that_nothing_answers_to(name: str) -> None:
    with pytest.raises(UsageError, match=r"there is no model|does not exist"):
        find(name)


def test_a_near_miss_of_the_embedded_model() -> None:
    with pytest.raises(UsageError, match=r"did you mean memgpt-tiny"):
        find("memgpt-tinny")


def test_a_folder_called_like_a_catalogue_model_needs_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    assert find("gpt2").origin == "catalogue"
    written(Path("gpt2"), LLAMA)
    assert find("gpt2").origin == "path"


def test_the_embedded_model() -> None:
    source = find("memgpt-tiny")
    assert source.origin == "embedded"
    assert source.weights_are_local
    assert_same(source.config)


def test_smollm2_is_in_the_catalogue_and_has_weights_where_its_package_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(smollm2, "installed_file", lambda: tmp_path / "smollm2.gguf")
    source = find("smollm2-135m")
    assert source.gguf_file == tmp_path / "smollm2.gguf"
    assert source.weights_are_local
    monkeypatch.setattr(smollm2, "installed_file", lambda: None)
    assert not find("smollm2-135m").weights_are_local


def test_a_multimodal_config_gives_its_text_part_and_says_so(tmp_path: Path) -> None:
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "sliding_window": 16}
    source = find(written(tmp_path, {"model_type": "gemma3", "text_config": text, "vision_config": {}}))
    assert source.config == {"model_type": "gemma3_text", **text}
    assert "its text part is taken alone" in source.notes[0]
    assert [layer.attention.window for layer in source.architecture.layers] == [16] * 5 + [None, 16]


def test_quantized_weights_are_counted_at_the_recipes_dtype_and_it_is_said(tmp_path: Path) -> None:
    config = LLAMA | {"quantization_config": {"quant_method": "mxfp4"}}
    (written(tmp_path, config) / "model.safetensors").touch()
    source = find(tmp_path)
    assert source.config == LLAMA
    assert not source.weights_are_local
    assert "quantized (mxfp4)" in source.notes[0]


def test_a_model_type_without_a_formula_is_found_and_refused_by_the_architecture(tmp_path: Path) -> None:
    source = find(written(tmp_path, {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(UnsupportedError, match=r"does not know the model type 'mamba'; add --trace"):
        _ = source.architecture


class TestReplacements:
    def test_either_spelling_of_a_key_replaces_the_familys_own(self) -> None:
        for key in ("n_layer", "num_hidden_layers"):
            config = find("gpt2-xl", config={key: 3}).config
            assert config["n_layer"] == 3
            assert "num_hidden_layers" not in config

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [("n_layers", "n_layer"), ("num_hiden_layers", "num_hidden_layers"), ("drop", None)],
    )
    def test_an_unknown_key_is_refused_with_the_nearest(self, key: str, nearest: str | None) -> None:
        hint = rf"did you mean '{nearest}'" if nearest else "it has .*vocab_size"
        with pytest.raises(UsageError, match=rf"model.config: gpt2 \(gpt2\) has no key '{key}'; {hint}"):
            find("gpt2", config={key: 2})

    def test_a_key_of_the_config_itself_is_known(self, tmp_path: Path) -> None:
        written(tmp_path, LLAMA | {"my_own": 1})
        assert find(tmp_path, config={"my_own": 2}).config["my_own"] == 2

    def test_layer_types_are_cut_and_their_pattern_goes_on(self, tmp_path: Path) -> None:
        types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
        written(tmp_path, LLAMA | {"model_type": "olmo3", "sliding_window": 8, "layer_types": types})
        assert find(tmp_path, config={"num_hidden_layers": 3}).config["layer_types"] == types[:3]
        longer = find(tmp_path, config={"num_hidden_layers": 7}).architecture
        assert [layer.attention.window for layer in longer.layers] == [8, 8, None, 8, 8, None, 8]

    def test_gpt_neo_names_its_layers_in_nested_lists(self) -> None:
        source = find("gpt-neo-1.3b", config={"num_layers": 3})
        assert source.config["attention_types"] == [[["global", "local", "global"], 1]]
        assert_same(source.config)

    @pytest.mark.parametrize("layers", [2, 60])
    def test_numbers_of_layers_with_experts(self, layers: int) -> None:
        source = find("llama-4-maverick", config={"num_hidden_layers": layers, "num_local_experts": 4})
        assert [layer.mlp.experts for layer in source.architecture.layers] == [0, 4] * (layers // 2)
        assert_same(source.config)

    def test_a_list_given_along_with_the_layers_is_kept(self) -> None:
        types = ["full_attention"] * 2
        source = find("gpt-oss-20b", config={"num_hidden_layers": 2, "layer_types": types})
        assert source.config["layer_types"] == types

    def test_a_smaller_vocabulary_drops_the_padding_token(self) -> None:
        source = find("phi-3-mini", config={"vocab_size": 128, "num_hidden_layers": 1})
        assert_same(source.config)

    def test_a_wrong_value_is_refused_with_its_key(self) -> None:
        with pytest.raises(UsageError, match=r"gpt2: 'n_embd' \(768\) cannot be divided by 'n_head' \(7\)"):
            find("gpt2", config={"n_head": 7})

    def test_a_replacement_can_mend_a_config(self, tmp_path: Path) -> None:
        (written(tmp_path, LLAMA | {"num_hidden_layers": 0}) / "model.safetensors").touch()
        source = find(tmp_path, config={"num_hidden_layers": 2})
        assert len(source.architecture.layers) == 2
        assert not source.weights_are_local

    def test_weights_stay_local_as_long_as_they_fit(self) -> None:
        assert find("memgpt-tiny", config={"attn_pdrop": 0.3}).weights_are_local
        assert not find("memgpt-tiny", config={"n_layer": 1}).weights_are_local

    @pytest.mark.parametrize(
        "name", ["gpt2", "opt-125m", "gpt-neo-125m", "falcon-7b", "llama-2-7b", "starcoder2-3b"]
    )
    def test_dropout_replaces_every_probability(self, name: str) -> None:
        architecture = find(name, dropout=0.25).architecture
        assert {layer.attention.dropout for layer in architecture.layers} == {0.25}
        assert {layer.residual_dropout for layer in architecture.layers} <= {0.25, 0.0}


def gguf_file(path: Path, architecture: str, metadata: dict[str, Any], tensors: tuple[str, ...] = ()) -> Path:
    """A GGUF file of this metadata, its embedding 96 tokens wide, and empty tensors of these names."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(
            f"{architecture}.{key}", value
        )
    width = metadata.get("embedding_length", 64)
    writer.add_tensor("token_embd.weight", np.zeros((96, width), np.float32))
    for name in tensors:
        writer.add_tensor(name, np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


COMMON = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention.head_count_kv": 2, "rope.dimension_count": 16}),
    "qwen2": ("qwen2", {"attention.head_count_kv": 2}),
    "qwen3": ("qwen3", {"attention.head_count_kv": 2, "attention.key_length": 32}),
    "qwen3moe": (
        "qwen3_moe",
        {
            "attention.head_count_kv": 2,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
        },
    ),
    "gemma2": (
        "gemma2",
        {"attention.key_length": 16, "attention.sliding_window": 32, "attention.head_count_kv": 2},
    ),
    "gemma3": (
        "gemma3_text",
        {"attention.key_length": 16, "attention.sliding_window": 32, "attention.head_count_kv": 2},
    ),
    "phi3": ("phi3", {"attention.head_count_kv": 2}),
    "starcoder2": ("starcoder2", {"attention.head_count_kv": 2}),
    "gpt2": ("gpt2", {"attention.layer_norm_epsilon": 1e-5}),
}


class TestGguf:
    @pytest.mark.parametrize("architecture", SHAPES)
    def test_metadata_becomes_a_config(self, architecture: str, tmp_path: Path) -> None:
        model_type, more = SHAPES[architecture]
        source = find(gguf_file(tmp_path / "model.gguf", architecture, COMMON | more))
        assert (source.origin, source.gguf_file) == ("gguf", tmp_path / "model.gguf")
        assert source.config["model_type"] == model_type
        numbers = source.architecture
        assert (numbers.vocab, numbers.hidden, len(numbers.layers)) == (96, 64, 2)
        assert numbers.layers[0].attention.kv_heads == more.get("attention.head_count_kv", 4)
        assert numbers.tied_embeddings
        if "pad_token_id" not in source.config:
            assert_same({**source.config, "pad_token_id": None})

    def test_an_output_matrix_and_biases_are_seen_in_the_tensors(self, tmp_path: Path) -> None:
        tensors = ("output.weight", "blk.0.attn_q.bias")
        source = find(gguf_file(tmp_path / "model.gguf", "llama", COMMON, tensors))
        assert not source.config["tie_word_embeddings"]
        assert source.config["attention_bias"]

    def test_llama_with_experts_is_mixtral(self, tmp_path: Path) -> None:
        experts = {"expert_count": 4, "expert_used_count": 2, "attention.head_count_kv": 2}
        mlp = find(gguf_file(tmp_path / "model.gguf", "llama", COMMON | experts)).architecture.layers[0].mlp
        assert (mlp.experts, mlp.experts_per_token) == (4, 2)

    def test_a_folder_with_one_file_and_one_with_two(self, tmp_path: Path) -> None:
        gguf_file(tmp_path / "a.gguf", "llama", COMMON)
        assert find(tmp_path).gguf_file == tmp_path / "a.gguf"
        gguf_file(tmp_path / "b.gguf", "llama", COMMON)
        with pytest.raises(UsageError, match=r"several GGUF files \(a.gguf, b.gguf\)"):
            find(tmp_path)

    def test_an_architecture_that_is_not_mapped(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedError, match=r"architecture 'rwkv7' are not read; those of .*llama"):
            find(gguf_file(tmp_path / "model.gguf", "rwkv7", COMMON))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "does not begin with GGUF"),
            (b"this is a text, not a model of any kind", "does not begin with GGUF"),
            (b"GGUF", "the file ends in the middle"),
            (b"GGUF" + bytes([1, 0, 0, 0]) + bytes(16), "its version is 1"),
            (b"GGUF" + bytes([0, 0, 0, 3]) + bytes(16), "its version is 50331648"),
            (b"GGUF" + bytes([3, 0, 0, 0]) + bytes([255] * 16), "the file ends in the middle"),
            (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"k", 99), "the unknown type 99"),
        ],
    )
    def test_a_file_that_is_no_gguf(self, content: bytes, reason: str, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"this is not a GGUF file that can be read: .*{reason}"):
            find(path)

    def test_the_head_is_what_the_gguf_package_reads(self, tmp_path: Path) -> None:
        writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
        writer.add_string("a.text", "Grüße")
        writer.add_bool("a.flag", True)
        writer.add_uint8("a.byte", 200)
        writer.add_int16("a.short", -300)
        writer.add_uint64("a.long", 2**40)
        writer.add_float64("a.double", 0.1)
        writer.add_array("a.numbers", [3, 2, 1])
        writer.add_array("a.texts", ["one", "two"])
        writer.add_tensor("a.weight", np.zeros((2, 3, 5), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        head, reader = read_head(tmp_path / "all.gguf"), gguf.GGUFReader(tmp_path / "all.gguf")
        theirs = {name: field.contents() for name, field in reader.fields.items() if "." in name}
        del theirs["a.texts"]
        theirs = {name: value for name, value in theirs.items() if not name.startswith("GGUF.")}
        assert head.metadata == theirs
        assert head.shapes == {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}

    @pytest.mark.smollm2
    def test_the_catalogue_says_of_smollm2_what_its_file_says(self) -> None:
        file = smollm2.installed_file()
        if file is None:
            pytest.skip("SmolLM2 is not installed: `make smollm2` brings it")
        from_file, from_catalogue = find(file).architecture, find("smollm2-135m").architecture
        assert from_file.tensors == from_catalogue.tensors
        assert from_file.layers == from_catalogue.layers


class TestHub:
    @pytest.fixture(autouse=True)
    def _no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def cached(self, tmp_path: Path, repository: str) -> Path:
        """Put a config into the hub's cache, in huggingface_hub's own layout."""
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        return written(folder / "snapshots" / "abc", LLAMA)

    def test_a_cached_config_needs_no_network(self, tmp_path: Path) -> None:
        self.cached(tmp_path, "someone/some-model")
        source = find("someone/some-model")
        assert (source.origin, source.config) == ("hub", LLAMA)
        assert source.source == "https://huggingface.co/someone/some-model/blob/main/config.json"
        assert not source.weights_are_local

    def test_cached_weights_are_local(self, tmp_path: Path) -> None:
        (self.cached(tmp_path, "someone/some-model") / "model.safetensors").touch()
        assert find("someone/some-model").weights_are_local

    def test_an_offline_miss_names_the_variable_and_the_ways_out(self) -> None:
        with pytest.raises(
            EnvironmentUnavailableError, match="unset HF_HUB_OFFLINE, or name a model"
        ) as caught:
            find("someone/some-model")
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)

    def test_a_hub_that_cannot_be_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}"
        )
        with pytest.raises(
            EnvironmentUnavailableError,
            match=r"the hub cannot be reached \(ConnectError\): connect, set HF_ENDPOINT",
        ):
            find("someone/some-model")

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("GatedRepoError", "is gated: accept its terms"),
            ("RepositoryNotFoundError", "is not on the hub, or private"),
            ("RemoteEntryNotFoundError", "has no config.json on the hub"),
            ("HfHubHTTPError", r"cannot be had from the hub \(HfHubHTTPError\)"),
        ],
    )
    def test_what_the_hub_refuses(self, kind: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        failure = getattr(errors, kind)

        def refuse(url: str) -> None:
            error = failure.__new__(failure)
            Exception.__init__(error, f"refused: {url}")
            raise error

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
        with pytest.raises(EnvironmentUnavailableError, match=message):
            hub.config_of("someone/some-model")

    @pytest.mark.parametrize("name", ["-bad/name", "some--one/x..y"])
    def test_a_text_that_cannot_be_a_hub_id(self, name: str) -> None:
        with pytest.raises(UsageError, match="is not a hub id"):
            find(name)
