"""OpenAI's gpt-oss: experts with biases, attention sinks, every second layer with a sliding window.

Sources: transformers' ``models/gpt_oss``; the model card is arXiv:2508.10925.
"""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.model.architecture import Architecture, Layer, Mlp, Tensor
from mem_gpt_cli.model.families.decoder import (
    DEFAULTS,
    LAYER_TYPES,
    Sizes,
    assemble,
    attention_tensors,
    attentions,
    block_norms,
    pattern,
)
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.mixture import chosen_experts
from mem_gpt_cli.model.families.tensors import Tensors
from mem_gpt_cli.model.settings import Settings

_DEFAULTS: dict[str, Any] = {
    **DEFAULTS,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 4,
    "swiglu_limit": 7.0,
    "swiglu_alpha": 1.702,
    "router_aux_loss_coef": 0.001,
    "output_router_logits": False,
    "layer_types": None,
    "attention_bias": True,
}


def _experts(hidden: int, inner: int, experts: int, count: int) -> Tensors:
    name = "model.layers.*.mlp"
    return (
        Tensor(f"{name}.router.weight", (experts, hidden), "other", count),
        Tensor(f"{name}.router.bias", (experts,), "bias", count),
        Tensor(f"{name}.experts.gate_up_proj", (experts, hidden, 2 * inner), "linear", count),
        Tensor(f"{name}.experts.gate_up_proj_bias", (experts, 2 * inner), "bias", count),
        Tensor(f"{name}.experts.down_proj", (experts, inner, hidden), "linear", count),
        Tensor(f"{name}.experts.down_proj_bias", (experts, hidden), "bias", count),
    )


def _read(config: Settings) -> Architecture:
    sizes, inner = Sizes.of(config), config.size("intermediate_size")
    experts, used = chosen_experts(config, "num_local_experts")
    types = config.layer_types(sizes.layers, LAYER_TYPES) or pattern(sizes.layers, every=2)
    mlp, bias = (
        Mlp(inner, True, config.text("hidden_act"), experts, used),
        config.flag("attention_bias"),
    )
    blocks = (
        *attention_tensors(sizes, qkv_bias=bias, output_bias=bias),
        Tensor("model.layers.*.self_attn.sinks", (sizes.heads,), "other", sizes.layers),
        *_experts(sizes.hidden, inner, experts, sizes.layers),
        *block_norms(sizes, "input_layernorm", "post_attention_layernorm"),
    )
    layers = tuple(
        Layer(attention, mlp, "rmsnorm") for attention in attentions(config, sizes, types, sinks=True)
    )
    return assemble(config, "gpt_oss", sizes, layers, blocks)


FAMILIES = (Family("gpt_oss", _DEFAULTS, _read, {"num_experts": "num_local_experts"}),)
