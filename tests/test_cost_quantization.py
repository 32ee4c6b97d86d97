"""Bytes of quantized weights, from the layout that bitsandbytes documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("name", ["gpt2", "llama-2-7b"])
@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_a_model_that_bitsandbytes_has_quantized(name: str, scheme: cost.Scheme, tmp_path: Path) -> None:
    """To the byte, where bitsandbytes is installed."""
    pytest.importorskip("bitsandbytes")
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from mem_gpt_cli.model.build import transformers_config

    recipe = load_recipe(overrides=[f"model.name={name}", *(f"model.config.{pair}" for pair in SMALL[name])])
    source = resolve(recipe.model)
    AutoModelForCausalLM.from_config(transformers_config(source, recipe)).save_pretrained(tmp_path)
    options = (
        {"load_in_8bit": True} if scheme == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    )
    config = BitsAndBytesConfig(**options, bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, device_map="cpu", dtype=torch.bfloat16
    )
    assert stored_bytes(model) == cost.weight_bytes(source.architecture, scheme, BF16)


SMALL = {
    "gpt2": ("n_embd=128", "n_layer=2", "n_head=4", "vocab_size=300"),
    "llama-2-7b": (
        "hidden_size=128",
        "num_hidden_layers=2",
        "num_attention_heads=4",
        "num_key_value_heads=2",
        "intermediate_size=352",
        "vocab_size=300",
    ),
}


def stored_bytes(model: Any) -> int:
    """Bytes of the distinct storages of a model's weights, their scales and tables included."""
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        tensors.append(getattr(parameter, "SCB", None))
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_rounding_is_by_storage() -> None:
    architecture = resolve(load_recipe(overrides=["model.name=gpt2"]).model).architecture
    rounded = cost.weight_bytes(architecture, "none", BF16, rounding=512)
    assert rounded % 512 == 0
    assert (
        0
        <= rounded - cost.weight_bytes(architecture, "none", BF16)
        < 512 * sum(t.count for t in architecture.tensors)
    )
