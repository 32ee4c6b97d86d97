"""Quantized weights by formula, held against the trace, phase by phase."""

from __future__ import annotations

import pytest

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.recipe.schema import Recipe

GPT2 = (
    "model.name=gpt2",
    "model.config={n_embd: 128, n_layer: 2, n_head: 4, vocab_size: 1000, n_positions: 256}",
)
LLAMA = (
    "model.name=llama-2-7b",
    "model.config={hidden_size: 128, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, "
    "intermediate_size: 384, vocab_size: 1000}",
)
CASES = (
    (GPT2, "{scheme: nf4}", "cpu", "fp32"),
    (GPT2, "{scheme: int8}", "cpu", "fp32"),
    (GPT2, "{scheme: int4, overrides: {embeddings: {scheme: int8}}}", "cpu", "fp32"),
    (LLAMA, "{scheme: fp4, double_quant: false}", "cpu", "fp32"),
    (LLAMA, "{scheme: int8, mapping: asymmetric, group_size: 48}", "cpu", "fp32"),
    (LLAMA, "{scheme: int8, backend: torchao}", "cpu", "fp32"),
    (LLAMA, "{scheme: nf4, overrides: {'*.1.*': {scheme: int8}, head: {scheme: int4}}}", "cpu", "fp32"),
    (GPT2, "{scheme: nf4}", "h100", "bf16"),
    (GPT2, "{scheme: int8, backend: torchao}", "h100", "bf16"),
    (LLAMA, "{scheme: int8}", "h100", "bf16"),
    (LLAMA, "{scheme: int4}", "rtx-4090", "fp16"),
)


def recipe_of(model: tuple[str, ...], section: str, device: str, dtype: str) -> Recipe:
    work = ("workload.prompt_tokens=40", "workload.new_tokens=3", "workload.batch=2")
    options = (f"quantization={section}", f"device={device}", f"model.dtype={dtype}")
    return load_recipe(overrides=[*model, *options, *work, "model.weights=random"])


@pytest.mark.parametrize(("model", "section", "device", "dtype"), CASES)
def test_the_formula_is_the_trace(model: tuple[str, ...], section: str, device: str, dtype: str) -> None:
    """Within a thousandth, or 4 KiB: the loading, the prefill and the decode steps."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    from mem_gpt_cli.trace import trace

    recipe = recipe_of(model, section, device, dtype)
    traced = {phase.name: phase.peak_allocated_bytes for phase in trace(recipe).phases}
    for phase in estimate(recipe).phases:
        off = abs(phase.peak_allocated_bytes - traced[phase.name])
        assert off <= max(4096, traced[phase.name] // 1000), phase.name


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    recipe = recipe_of(GPT2, "{scheme: nf4, overrides: {'*.mpl.*': {scheme: int8}}}", "cpu", "fp32")
    with pytest.raises(RecipeError, match=r"'\*\.mpl\.\*' matches no matrix of gpt2"):
        estimate(recipe)


def test_what_stays_in_full_is_told() -> None:
    report = estimate(recipe_of(LLAMA, "{scheme: nf4, overrides: {head: {scheme: int4}}}", "cpu", "fp32"))
    assert report.details["kept_in_full_precision"] == ["model.embed_tokens.weight"]
    assert any("leaves model.embed_tokens" in warning for warning in report.warnings)


def test_layers_that_are_quantized_otherwise_are_walked() -> None:
    """Of equal layers the inner ones are left out; one with a larger product in its midst is not."""
    config = "{n_embd: 128, n_layer: 9, n_head: 4, vocab_size: 1000, n_positions: 256}"
    model = ("model.name=gpt2", f"model.config={config}")
    text = "{scheme: nf4, overrides: {'*.4.mlp.*': {scheme: int8, backend: native}}}"
    decode = {phase.name: phase for phase in estimate(recipe_of(model, text, "cpu", "fp32")).phases}["decode"]
    assert decode.peak_module == "layers.4.mlp"
