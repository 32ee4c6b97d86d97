"""Bytes of quantized weights, from the layout that bitsandbytes documents."""

from __future__ import annotations

import pytest

from mem_gpt_cli.model import Tensor, resolve
from mem_gpt_cli.quantization import cost
from mem_gpt_cli.recipe import load_recipe

BF16 = 2
LINEAR = Tensor("model.layers.*.mlp.up_proj.weight", (11008, 4096), "linear", count=32)
CONV1D = Tensor("transformer.h.*.attn.c_attn.weight", (768, 2304), "linear", count=12)
HEAD = Tensor("lm_head.weight", (32000, 4096), "linear")
NORM = Tensor("model.layers.*.input_layernorm.weight", (4096,), "norm", count=32)


def test_int8_is_a_byte_a_weight_and_a_scale_an_output() -> None:
    """LLM.int8, arXiv:2208.07339, section 3.1: vector-wise scales; ``SCB`` is fp32, one for each output."""
    assert cost.stored(LINEAR, "int8", BF16) == cost.StoredTensor(11008 * 4096, 4 * 11008)
    assert cost.stored(CONV1D, "int8", BF16) == cost.StoredTensor(768 * 2304, 4 * 2304)


def test_nf4_with_plain_scales_is_four_and_a_half_bits_a_weight() -> None:
    """QLoRA, arXiv:2305.14314, section 3: blocks of 64 with an fp32 maximum each add 0.5 bit a weight."""
    stored = cost.stored(LINEAR, "nf4", BF16, double_quantization=False)
    assert stored.total * 8 / LINEAR.numel == pytest.approx(4.5, abs=1e-4)


def test_nf4_with_double_quantization_is_4_127_bits_a_weight() -> None:
    """QLoRA, section 3: 8/64 + 32/(64 * 256) = 0.127 bit a weight."""
    stored = cost.stored(LINEAR, "nf4", BF16)
    assert stored.total * 8 / LINEAR.numel == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)


def test_a_block_that_is_not_full_has_a_scale_of_its_own() -> None:
    assert (
        cost.nf4_scales(65, double_quantization=False) - cost.nf4_scales(64, double_quantization=False) == 4
    )


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
@pytest.mark.parametrize("tensor", [HEAD, NORM])
def test_heads_and_norms_keep_the_models_width(tensor: Tensor, scheme: cost.Scheme) -> None:
    assert cost.stored(tensor, scheme, BF16) == cost.StoredTensor(2 * tensor.numel)


def test_buffers_keep_their_own_width() -> None:
    mask = Tensor("rotary.inv_freq", (64,), "buffer", dtype_bytes=4)
    assert cost.stored(mask, "nf4", BF16).total == 256


def test_the_weights_of_a_model_add_up() -> None:
    architecture = resolve(load_recipe(overrides=["model.name=gpt2"]).model).architecture
    full = cost.weight_bytes(architecture, "none", BF16)
    assert full == 2 * 124_439_808
    linear = sum(t.numel * t.count for t in architecture.tensors if t.kind == "linear")
    outputs = 12 * (2304 + 768 + 3072 + 768)
    assert cost.weight_bytes(architecture, "int8", BF16) == full - linear + 4 * outputs


def test_rounding_is_by_storage() -> None:
    architecture = resolve(load_recipe(overrides=["model.name=gpt2"]).model).architecture
    rounded = cost.weight_bytes(architecture, "none", BF16, rounding=512)
    assert rounded % 512 == 0
    assert (
        0
        <= rounded - cost.weight_bytes(architecture, "none", BF16)
        < 512 * sum(t.count for t in architecture.tensors)
    )
