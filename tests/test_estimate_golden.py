"""Figures from the literature, computed by the formulas: each test names its source and the setting."""

from __future__ import annotations

import pytest

from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.estimate.parameters import parameter_bytes
from mem_gpt_cli.estimate.phases import stored_weights
from mem_gpt_cli.kv_cache import cost as cache_cost
from mem_gpt_cli.model import Architecture, resolve
from mem_gpt_cli.recipe import Recipe, load_recipe

FP16 = 2
MIB, GIB = 2**20, 2**30


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe(overrides=overrides)


def architecture(name: str) -> Architecture:
    return resolve(recipe_of(f"model.name={name}").model).architecture


def test_gpt2_xl_has_1_5_billion_parameters() -> None:
    """Radford et al. 2019 say 1542M; the released weights have 1,557,611,200 (openai-community/gpt2-xl)."""
    report = estimate(recipe_of("model.name=gpt2-xl"))
    assert report.model.parameters == 1_557_611_200


def test_gpt2_xl_takes_3_1_gigabytes_in_half_precision() -> None:
    """Two bytes for each of 1,557,611,200 parameters: 3.115 GB, no buffers."""
    recipe = recipe_of("model.name=gpt2-xl", "model.dtype=fp16")
    assert stored_weights(architecture("gpt2-xl"), recipe) == 3_115_222_400


@pytest.mark.parametrize("name", ["llama-2-7b", "mistral-7b-v0.1", "opt-6.7b", "deepseek-llm-7b"])
def test_a_7b_model_takes_14_gigabytes_in_half_precision(name: str) -> None:
    """A rule of thumb: two bytes times seven billion."""
    recipe = recipe_of(f"model.name={name}", "model.dtype=fp16")
    assert stored_weights(architecture(name), recipe) / 1e9 == pytest.approx(14, rel=0.06)


def test_a_13b_model_takes_26_gigabytes_and_800_kilobytes_a_token() -> None:
    """vLLM, arXiv:2309.06180: OPT-13B in fp16 has 26 GB of weights (figure 1) and 800 KB of keys and values a
    token (section 3): 2 of them x 5120 hidden x 40 layers x 2 bytes.
    """
    opt = architecture("opt-13b")
    assert stored_weights(opt, recipe_of("model.name=opt-13b", "model.dtype=fp16")) / 1e9 == pytest.approx(
        26, rel=0.02
    )
    assert cache_cost.cache_bytes(opt, batch=1, tokens=1, item=FP16) == 2 * 5120 * 40 * 2 == 800 * 1024


def test_cache_of_opt_30b_takes_180_gigabytes() -> None:
    """H2O, arXiv:2306.14048, section 1: 30 billion parameters, batch 128, 1024 tokens: 180 GB of keys and
    values; here OPT-30B in fp16 and decimal gigabytes.
    """
    nbytes = cache_cost.cache_bytes(architecture("opt-30b"), batch=128, tokens=1024, item=FP16)
    assert nbytes / 1e9 == pytest.approx(180, rel=0.003)


def test_cache_of_opt_175b_takes_1_2_terabytes() -> None:
    """FlexGen, arXiv:2303.06865, section 3: OPT-175B in fp16, batch 512, 512 tokens of prompt and 32 new:
    1.2 TB of keys and values, 3.8 times the weights (binary terabytes: 1.31 decimal ones).
    """
    opt = architecture("opt-175b")
    nbytes = cache_cost.cache_bytes(opt, batch=512, tokens=512 + 32, item=FP16)
    assert nbytes / 2**40 == pytest.approx(1.2, rel=0.01)
    weights = stored_weights(opt, recipe_of("model.name=opt-175b", "model.dtype=fp16"))
    assert nbytes / weights == pytest.approx(3.8, rel=0.02)


@pytest.mark.parametrize("name", ["llama-3.1-70b", "llama-2-70b"])
def test_cache_of_a_70b_llama_at_128k_takes_40_gibibytes(name: str) -> None:
    """80 layers, 8 key-value heads of 128 (arXiv:2407.21783, table 3) in fp16: 320 KiB for each token."""
    assert cache_cost.cache_bytes(architecture(name), batch=1, tokens=131_072, item=FP16) == 40 * GIB


def test_latent_cache_of_deepseek_v3_is_far_below_its_heads() -> None:
    """DeepSeek-V2, arXiv:2405.04434, table 1: latent attention keeps kv_lora_rank + rope elements a token and
    layer, here 512 + 64; transformers keeps no more.
    """
    deepseek = architecture("deepseek-v3")
    assert cache_cost.cache_bytes(deepseek, batch=1, tokens=1, item=FP16) == 61 * (512 + 64) * 2
    per_head = sum(cache_cost.expanded_elements_per_token(layer.attention) for layer in deepseek.layers)
    assert per_head == 61 * 128 * (192 + 128)


@pytest.mark.parametrize(
    ("implementation", "mebibytes"), [("fused", 23_964), ("loop", 24_578), ("foreach", 29_906)]
)
def test_the_optimizer_step_of_gpt2_xl(implementation: str, mebibytes: int) -> None:
    """Peaks of the step traced with torch 2.13: GPT-2 XL in fp32, checkpointed, one sequence of 1024 tokens,
    outputs held as most training loops do.
    """
    report = estimate(
        recipe_of(
            "model.name=gpt2-xl",
            "task=training",
            "workload.seq=1024",
            "checkpointing.policy=full",
            "workload.hold_outputs=true",
            f"optimizer.implementation={implementation}",
        )
    )
    step = report.phase("optimizer_step")
    assert step is not None
    assert step.peak_allocated_bytes / MIB == pytest.approx(mebibytes, abs=1)


def test_adam_keeps_eight_bytes_a_parameter() -> None:
    """Adam, arXiv:1412.6980, algorithm 1: two moments of each parameter, here in fp32."""
    report = estimate(recipe_of("model.name=gpt2", "task=training"))
    sizes = parameter_bytes(architecture("gpt2"), item=4)
    counters = 4 * len(sizes)
    assert report.peak.components["optimizer_state"] == 8 * report.model.parameters + counters
