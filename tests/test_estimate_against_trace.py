"""The formula against its oracle, the trace of the real code; the grid is benchmarks/accuracy/formula.py."""

from __future__ import annotations

import pytest

from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.report import MemoryReport
from mem_gpt_cli.trace import trace

GPT2 = (
    "model.name=gpt2 model.config.n_layer=3 model.config.n_embd=128 model.config.n_head=4 "
    "model.config.vocab_size=512 device.threads=1"
)
LLAMA = (
    "model.name=llama-2-7b model.config.num_hidden_layers=3 model.config.hidden_size=128 "
    "model.config.intermediate_size=344 model.config.num_attention_heads=4 "
    "model.config.num_key_value_heads=2 model.config.vocab_size=512 device.threads=1"
)
GENERATION = "workload.prompt_tokens=200 workload.new_tokens=8"
TRAINING = "task=training workload.seq=192"


def both(text: str) -> tuple[MemoryReport, MemoryReport]:
    recipe = load_recipe(overrides=text.split())
    return estimate(recipe), trace(recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        f"{GPT2} {GENERATION} attention.backend=eager workload.batch=3",
        f"{LLAMA} {GENERATION} kv_cache.kind=none model.dtype=bf16",
        f"{GPT2} {TRAINING} attention.backend=eager workload.autocast=bf16 workload.batch=2",
        f"{LLAMA} {TRAINING} checkpointing.policy=full model.dtype=bf16",
    ],
    ids=["gpt2, eager", "llama, no cache", "gpt2, autocast", "llama, checkpointing"],
)
def test_every_phase_is_within_three_percent_and_weights_are_exact(recipe: str) -> None:
    formula, traced = both(recipe)
    for theirs in traced.phases:
        ours = formula.phase(theirs.name)
        assert ours is not None
        assert ours.components["weights"] == theirs.components["weights"]
        if theirs.name != "load":
            assert ours.peak_allocated_bytes == pytest.approx(theirs.peak_allocated_bytes, rel=0.03), (
                theirs.name
            )


WINDOWED = "model.name=mistral-7b-v0.1 model.config.sliding_window=64"
LATENT = (
    "model.name=deepseek-v3 model.config.n_routed_experts=4 model.config.n_group=2 model.config.topk_group=1 "
    "model.config.num_experts_per_tok=2 model.config.moe_intermediate_size=64"
)


@pytest.mark.parametrize("model", [WINDOWED, LATENT], ids=["sliding window", "latent attention"])
def test_cache_of_other_attentions_is_exact(model: str) -> None:
    """A window keeps its prompt until the first decode step; latent attention is cached compressed."""
    small = (
        "model.config.num_hidden_layers=2 model.config.hidden_size=128 model.config.intermediate_size=256 "
        "model.config.num_attention_heads=4 model.config.num_key_value_heads=4 model.config.vocab_size=512"
    )
    formula, traced = both(f"{model} {small} {GENERATION}")
    for name in ("prefill", "decode"):
        ours, theirs = formula.phase(name), traced.phase(name)
        assert ours is not None
        assert theirs is not None
        assert ours.components["kv_cache"] == theirs.components["kv_cache"], name


SMALL_WINDOW = (
    f"{WINDOWED} model.config.num_hidden_layers=3 model.config.hidden_size=128 "
    "model.config.intermediate_size=256 model.config.num_attention_heads=4 "
    "model.config.num_key_value_heads=2 model.config.vocab_size=512 device.threads=1"
)
MIXED_WINDOWS = (
    "model.name=gemma-3-1b model.config.num_hidden_layers=3 model.config.hidden_size=96 "
    "model.config.intermediate_size=256 model.config.num_attention_heads=4 "
    "model.config.num_key_value_heads=1 model.config.head_dim=32 model.config.vocab_size=512 "
    "model.config.sliding_window=64 model.config.sliding_window_pattern=3 device.threads=1"
)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (SMALL_WINDOW, "workload.autocast=bf16"),
        (MIXED_WINDOWS, "model.dropout=0.1"),
        (MIXED_WINDOWS, "attention.backend=eager"),
    ],
    ids=["every layer, autocast", "two layers in three, dropout", "two layers in three, eager"],
)
def test_training_beyond_a_window_is_within_half_a_percent(model: str, options: str) -> None:
    """The fused kernel, the composite one (dropout) and eager code each hold masks of their own."""
    formula, traced = both(f"{model} {TRAINING} workload.batch=2 {options}")
    for theirs in traced.phases:
        ours = formula.phase(theirs.name)
        assert ours is not None
        assert ours.peak_allocated_bytes == pytest.approx(theirs.peak_allocated_bytes, rel=0.005), theirs.name


def test_a_prefill_with_a_window_is_exact() -> None:
    """Long enough for the masks to decide the peak: each layer makes one of 4 B a pair and sequence."""
    for model in (SMALL_WINDOW, MIXED_WINDOWS):
        formula, traced = both(f"{model} workload.prompt_tokens=600 workload.new_tokens=4 workload.batch=2")
        for name in ("prefill", "decode"):
            ours, theirs = formula.phase(name), traced.phase(name)
            assert ours is not None
            assert theirs is not None
            assert ours.peak_allocated_bytes == theirs.peak_allocated_bytes, name
