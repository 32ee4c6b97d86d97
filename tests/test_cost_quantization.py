"""Bytes of quantized weights: by the layouts that are documented, and as the layers hold them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.model import resolve
from mem_gpt_cli.quantization import cost
from mem_gpt_cli.quantization.placement import placed
from mem_gpt_cli.quantization.plan import Method, plan_of
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.recipe.schema import Recipe

BF16 = 2
WIDE = (11008, 4096)
WEIGHTS = 11008 * 4096

MODELS = {
    "gpt2": "{n_embd: 128, n_layer: 3, n_head: 4, vocab_size: 304}",
    "llama-2-7b": "{hidden_size: 128, num_hidden_layers: 3, num_attention_heads: 4, "
    "num_key_value_heads: 2, intermediate_size: 352, vocab_size: 304}",
    "smollm2-135m": "{hidden_size: 120, num_hidden_layers: 3, num_attention_heads: 6, "
    "num_key_value_heads: 2, intermediate_size: 328, vocab_size: 300}",
    "mixtral-8x7b": "{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, intermediate_size: 96, vocab_size: 304, num_local_experts: 4}",
    "santacoder": "{n_embd: 128, n_layer: 2, n_head: 4, vocab_size: 304, n_positions: 64}",
    "opt-125m": "{hidden_size: 64, word_embed_proj_dim: 64, num_hidden_layers: 2, ffn_dim: 256, "
    "num_attention_heads: 4, vocab_size: 304}",
}
SECTIONS = (
    "{}",
    "{scheme: nf4}",
    "{scheme: nf4, double_quant: false, group_size: 128}",
    "{scheme: fp4, group_size: 32}",
    "{scheme: int8}",
    "{scheme: int8, backend: native}",
    "{scheme: int8, mapping: asymmetric, group_size: 48}",
    "{scheme: int8, backend: torchao}",
    "{scheme: int8, backend: torchao, mapping: asymmetric}",
    "{scheme: int4}",
    "{scheme: int4, group_size: 33}",
    "{scheme: int4, mapping: asymmetric, group_size: 32}",
    "{scheme: int4, overrides: {embeddings: {scheme: int8}, head: {scheme: int8, mapping: asymmetric}}}",
    "{scheme: nf4, overrides: {'*.1.*': {scheme: none}, '*.0.*': {scheme: int4, group_size: 16}}}",
    "{overrides: {head: {scheme: int4}}}",
)


def recipe_of(model: str, section: str = "{}", dtype: str = "bf16") -> Recipe:
    config = [f"model.config={MODELS[model]}"] if model in MODELS else []
    return load_recipe(
        overrides=[f"model.name={model}", *config, f"model.dtype={dtype}", f"quantization={section}"]
    )


def method(
    scheme: Any, backend: Any = "bitsandbytes", group: int | None = 64, double: bool = False
) -> Method:
    return Method(scheme, backend, "symmetric", group, double)


def test_int8_is_a_byte_a_weight_and_a_scale_an_output() -> None:
    """LLM.int8, arXiv:2208.07339, section 3.1: vector-wise scales; ``SCB`` is fp32, one for each output."""
    assert cost.matrix_parts(method("int8", group=None), *WIDE, BF16) == (WEIGHTS, 4 * 11008)


def test_nf4_with_plain_scales_is_four_and_a_half_bits_a_weight() -> None:
    """QLoRA, arXiv:2305.14314, section 3: blocks of 64 with an fp32 maximum each add 0.5 bit a weight."""
    bits = 8 * sum(cost.matrix_parts(method("nf4"), *WIDE, BF16)) / WEIGHTS
    assert bits == pytest.approx(4.5, abs=1e-4)


def test_nf4_with_double_quantization_is_4_127_bits_a_weight() -> None:
    """QLoRA, section 3: 8/64 + 32/(64 * 256) = 0.127 bit a weight."""
    bits = 8 * sum(cost.matrix_parts(method("nf4", double=True), *WIDE, BF16)) / WEIGHTS
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)


def test_int4_in_groups_of_64_is_four_and_a_quarter_bits_a_weight() -> None:
    bits = 8 * sum(cost.matrix_parts(method("int4", "native"), *WIDE, BF16)) / WEIGHTS
    assert bits == 4.25


def test_a_block_that_is_not_full_has_a_scale_of_its_own() -> None:
    full, more = (cost.matrix_parts(method("nf4"), 1, numel, BF16) for numel in (64, 65))
    assert more[1] - full[1] == 4


def test_the_weights_of_a_model_add_up() -> None:
    """GPT-2's ``Conv1D`` is transposed: a scale for each of its outputs."""
    recipe = load_recipe(overrides=["model.name=gpt2", "quantization.scheme=int8"])
    architecture = resolve(recipe.model).architecture
    full = cost.weight_bytes(architecture, plan_of(load_recipe()), BF16)
    assert full == 2 * 124_439_808
    linear = sum(t.numel * t.count for t in architecture.tensors if t.kind == "linear")
    outputs = 12 * (2304 + 768 + 3072 + 768)
    assert cost.weight_bytes(architecture, plan_of(recipe), BF16) == full - linear + 4 * outputs


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_the_layers_hold_what_is_told(name: str, section: str) -> None:
    """To the byte, in both widths, and the same matrices."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    from mem_gpt_cli.quantization.modules import quantized_layers
    from mem_gpt_cli.workload.build import build_on_meta

    for dtype, item in (("bf16", 2), ("fp32", 4)):
        recipe = recipe_of(name, section, dtype)
        source = resolve(recipe.model)
        try:
            model = build_on_meta(source, recipe)
        except UnsupportedError as refused:
            reason = str(refused).partition(" has ")[2]  # modules are met in an order of their own
            with pytest.raises(UnsupportedError, match=re.escape(reason)):
                cost.weight_bytes(source.architecture, plan_of(recipe), item)
            return
        held = stored_bytes(model)
        assert cost.weight_bytes(source.architecture, plan_of(recipe), item) == held
    told = {one.module for one in placed(source.architecture, plan_of(recipe)) if one.method}
    tied = {"lm_head"} if source.architecture.tied_embeddings else set()
    assert told == {path for path, _ in quantized_layers(model)} - tied


def stored_bytes(model: Any) -> int:
    """Bytes of the distinct tensors that a model on ``meta`` stores, quantized matrices part by part."""
    from mem_gpt_cli.quantization.modules import quantized_layers

    tensors: dict[Any, int] = {}
    inside = set()
    for path, layer in quantized_layers(model):
        inside |= {f"{path}.{name}" for name in ("weight", "codes", "scale", "zero")}
        for part in layer.parts().values():
            tensors[part.untyped_storage()._cdata] = part.numel() * part.element_size()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in inside:
            tensors[tensor.untyped_storage()._cdata] = tensor.numel() * tensor.element_size()
    return sum(tensors.values())


@pytest.mark.parametrize(
    ("name", "section", "said"),
    [
        ("gpt2", "{overrides: {head: {scheme: nf4}}}", "choose int8 or int4"),
        ("smollm2-135m", "{scheme: int4, backend: torchao, group_size: 32}", "choose backend native"),
    ],
)
def test_what_no_layer_can_hold_is_refused_by_both(name: str, section: str, said: str) -> None:
    from mem_gpt_cli.workload.build import build_on_meta

    recipe = recipe_of(name, section)
    source = resolve(recipe.model)
    with pytest.raises(UnsupportedError, match=said):
        cost.weight_bytes(source.architecture, plan_of(recipe), BF16)
    with pytest.raises(UnsupportedError):
        build_on_meta(source, recipe)


def test_stacked_experts_and_what_is_tied_to_them_stay_in_full() -> None:
    recipe = recipe_of("mixtral-8x7b", "{scheme: nf4}")
    kept = cost.kept_in_full(resolve(recipe.model).architecture, plan_of(recipe))
    assert kept[0] == "model.layers.*.mlp.experts.gate_up_proj"
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(kept)


def test_rounding_is_by_storage() -> None:
    architecture = resolve(load_recipe(overrides=["model.name=gpt2"]).model).architecture
    plan = plan_of(load_recipe())
    rounded, exact = (cost.weight_bytes(architecture, plan, BF16, rounding=grain) for grain in (512, 1))
    assert rounded % 512 == 0
    assert 0 <= rounded - exact < 512 * sum(t.count for t in architecture.tensors)
