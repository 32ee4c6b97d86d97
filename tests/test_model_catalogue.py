"""The catalogue as data: its names, its sources, the counts that its models are published with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import mem_gpt_cli.model.entries as entries
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model import Entry, catalogue, read_architecture, resolve
from mem_gpt_cli.model.entries import find_entry
from mem_gpt_cli.model.families import MODEL_TYPES
from mem_gpt_cli.recipe.schema import Model

WANTED = frozenset(
    (
        *("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "gpt-neo-125m", "gpt-neo-1.3b"),
        *("gpt-neo-2.7b", "gpt-j-6b", "gpt-neox-20b", "opt-125m", "opt-350m", "opt-1.3b", "opt-2.7b"),
        *("opt-6.7b", "opt-13b", "opt-30b", "opt-66b", "opt-175b", "pythia-70m", "pythia-12b"),
        *("bloom-560m", "bloom-7b1", "bloom-176b", "falcon-7b", "falcon-40b", "falcon-180b"),
        *("llama-7b", "llama-13b", "llama-30b", "llama-65b", "llama-2-7b", "llama-2-13b"),
        *("llama-2-70b", "llama-3-8b", "llama-3-70b", "llama-3.1-405b", "llama-3.2-1b"),
        *("llama-3.3-70b", "llama-4-scout", "llama-4-maverick", "mistral-7b-v0.1", "mistral-7b-v0.3"),
        *("mistral-nemo", "mistral-small", "mixtral-8x7b", "mixtral-8x22b", "qwen2-7b", "qwen2.5-72b"),
        *("qwen3-0.6b", "qwen3-235b-a22b", "qwen1.5-moe-a2.7b", "gemma-2b", "gemma-2-27b"),
        *("gemma-3-27b", "phi-1", "phi-1.5", "phi-2", "phi-3-mini", "phi-3.5-mini", "phi-4"),
        *("starcoder", "starcoder2-15b", "deepseek-v2", "deepseek-v2-lite", "deepseek-v3"),
        *("deepseek-r1", "gpt-oss-20b", "gpt-oss-120b", "smollm-135m", "smollm2-135m", "smollm3-3b"),
        *("olmo-7b", "olmo-2-32b", "olmoe-1b-7b", "tinyllama", "stablelm-2-12b", "yi-34b"),
    )
)


def parameters(name: str) -> int:
    return resolve(Model(name=name)).architecture.parameters


def test_the_families_that_people_ask_for_are_there() -> None:
    assert [name for name in sorted(WANTED) if find_entry(name) is None] == []
    assert len(catalogue()) >= 60


def test_every_file_of_the_catalogue_is_read_and_nothing_twice() -> None:
    files = list((Path(entries.__file__).parent / "catalogue").glob("*.json"))
    stored = [name for path in files for name in json.loads(path.read_text())["models"]]
    assert sorted(stored) == sorted(entry.name for entry in catalogue())
    names = [name for entry in catalogue() for name in entry.names]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_an_entry_names_its_source_and_reads(entry: Entry) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub)
    assert entry.source == f"https://huggingface.co/{entry.hub}" or entry.name == "opt-175b"
    assert entry.name == entry.name.casefold()
    architecture = read_architecture(entry.config, entry.name)
    assert architecture.parameters > 10**7
    once_a_layer = [t.count for t in architecture.tensors if re.fullmatch(r"[^*]*\*[^*]*", t.name)]
    assert len(architecture.layers) == max(once_a_layer)


PUBLISHED = [entry for entry in catalogue() if entry.parameters is not None]


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_parameters_are_the_published_ones(entry: Entry) -> None:
    """What the hub counts in the stored weights, or the model card or paper gives to the unit."""
    assert read_architecture(entry.config, entry.name).parameters == entry.parameters


def test_most_entries_have_a_published_count() -> None:
    assert len(PUBLISHED) >= 150


def test_gpt2_xl_has_1557611200_parameters_about_3_gb_in_half_precision() -> None:
    """https://huggingface.co/openai-community/gpt2-xl; Radford et al. 2019 call it the 1.5B model."""
    assert parameters("gpt2-xl") == 1_557_611_200
    assert 2 * parameters("gpt2-xl") / 1e9 == pytest.approx(3.1, abs=0.05)


@pytest.mark.parametrize(
    ("name", "without_embeddings"),
    [
        ("pythia-70m", 18_915_328),
        ("pythia-160m", 85_056_000),
        ("pythia-410m", 302_311_424),
        ("pythia-1b", 805_736_448),
        ("pythia-1.4b", 1_208_602_624),
        ("pythia-2.8b", 2_517_652_480),
        ("pythia-6.9b", 6_444_163_072),
        ("pythia-12b", 11_327_027_200),
    ],
)
def test_pythia_without_embeddings(name: str, without_embeddings: int) -> None:
    """Biderman et al. 2023 (arXiv:2304.01373), table 1: non-embedding parameters."""
    architecture = resolve(Model(name=name)).architecture
    embeddings = [t for t in architecture.tensors if "embed_in" in t.name or "lm_head" in t.name]
    assert len(embeddings) == 2
    assert architecture.parameters - sum(t.numel for t in embeddings) == without_embeddings


def test_a_7b_model_takes_about_14_gb_in_fp16() -> None:
    """Touvron et al. 2023 (arXiv:2302.13971), table 2: 6.7B parameters; two bytes each make 13.5 GB."""
    assert 2 * parameters("llama-2-7b") / 1e9 == pytest.approx(13.5, abs=0.05)


def test_active_experts_of_mixtral() -> None:
    """Jiang et al. 2024 (arXiv:2401.04088): 47B parameters in all, 13B used by a token."""
    architecture = resolve(Model(name="mixtral-8x7b")).architecture
    experts = sum(t.numel * t.count for t in architecture.tensors if ".experts." in t.name)
    mlp = architecture.layers[0].mlp
    active = architecture.parameters - experts * (mlp.experts - mlp.experts_per_token) // mlp.experts
    assert architecture.parameters / 1e9 == pytest.approx(47, abs=0.5)
    assert active / 1e9 == pytest.approx(13, abs=0.2)


def test_deepseek_v3_is_671b_of_which_37b_are_active() -> None:
    """DeepSeek-AI 2024 (arXiv:2412.19437): 671B parameters, 37B of them for each token; 3 dense layers."""
    architecture = resolve(Model(name="deepseek-v3")).architecture
    experts = sum(t.numel * t.count for t in architecture.tensors if ".experts." in t.name)
    assert architecture.parameters / 1e9 == pytest.approx(671, abs=0.5)
    assert (architecture.parameters - experts * 248 // 256) / 1e9 == pytest.approx(37, abs=0.8)
    assert [layer.mlp.experts for layer in architecture.layers].count(0) == 3


def test_gemma_3_text_and_vision_add_up_to_the_stored_weights() -> None:
    """The hub counts 4,300,079,472 for google/gemma-3-4b-pt; 419,816,304 are SigLIP and the projector."""
    siglip, projector = 416_866_032, 1152 * 2560 + 1152
    assert parameters("gemma-3-4b") + siglip + projector == 4_300_079_472


@pytest.mark.parametrize(
    "name",
    ["gpt2-xl", "GPT2-XL", "openai-community/gpt2-xl", "OpenAI-Community/GPT2-xl"],
)
def test_names_are_found_in_any_case_with_or_without_the_maker(name: str) -> None:
    assert resolve(Model(name=name)).name == "gpt2-xl"


@pytest.mark.parametrize(
    "name", ["llama-2-7b", "meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf", "Llama-2-7b-chat-hf"]
)
def test_tuned_models_of_the_same_shape_are_aliases(name: str) -> None:
    found = find_entry(name) or find_entry(f"meta-llama/{name}")
    assert found is not None
    assert found.name == "llama-2-7b"


@pytest.mark.parametrize(
    ("typed", "meant"), [("gpt2-xll", "gpt2-xl"), ("lama-2-7b", "llama-2-7b"), ("qwen-2.5-7b", "qwen2.5-7b")]
)
def test_a_miss_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(
        UsageError, match=rf"no model '{re.escape(typed)}': did you mean .*{re.escape(meant)}"
    ):
        resolve(Model(name=typed))


def test_windows_and_chunks_of_layers() -> None:
    gemma = resolve(Model(name="gemma-3-1b")).architecture
    assert [layer.attention.window for layer in gemma.layers[:7]] == [512] * 5 + [None, 512]
    scout = resolve(Model(name="llama-4-scout")).architecture
    assert [layer.attention.chunk for layer in scout.layers[:4]] == [8192] * 3 + [None]
    assert {
        layer.attention.window for layer in resolve(Model(name="mistral-7b-v0.1")).architecture.layers
    } == {4096}
    assert {
        layer.attention.window for layer in resolve(Model(name="mistral-7b-v0.3")).architecture.layers
    } == {None}


def test_the_documentation_names_every_model_type() -> None:
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    named = re.search(r"closed form knows:\n`([^`]*)`", text)
    assert named is not None
    assert tuple(named[1].split()) == MODEL_TYPES
