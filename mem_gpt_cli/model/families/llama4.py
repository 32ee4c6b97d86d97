"""Meta's Llama 4, the text part: chunked attention, one routed expert and a shared one.

Source: transformers' ``models/llama4``.
"""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.model.architecture import Architecture, Layer, Mlp, Tensor
from mem_gpt_cli.model.families.decoder import (
    CHUNKED,
    DEFAULTS,
    FULL,
    LAYER_TYPES,
    Sizes,
    assemble,
    attention_tensors,
    attentions,
    block_norms,
)
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.mixture import chosen_experts
from mem_gpt_cli.model.families.tensors import Tensors, gated_mlp, linear
from mem_gpt_cli.model.settings import Settings

_DEFAULTS: dict[str, Any] = {
    **DEFAULTS,
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "moe_layers": None,
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "layer_types": None,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "attention_bias": False,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
}


def _layer_types(config: Settings, layers: int) -> tuple[str, ...]:
    """Layers with rotary positions look at their chunk, the others at everything."""
    given = config.layer_types(layers, LAYER_TYPES)
    if given:
        return given
    every = config.size("no_rope_layer_interval")
    rotated = config.indices("no_rope_layers") or tuple((i + 1) % every for i in range(layers))
    return tuple(CHUNKED if has_rotary else FULL for has_rotary in rotated)


def _sparse_layers(config: Settings, layers: int) -> frozenset[int]:
    """The layers with experts, by number."""
    given, step = config.indices("moe_layers"), config.size("interleave_moe_layer_step")
    return frozenset(range(step - 1, layers, step) if given is None else given) & frozenset(range(layers))


def _experts(hidden: int, inner: int, experts: int, count: int) -> Tensors:
    name = "model.layers.*.feed_forward"
    return (
        Tensor(f"{name}.experts.gate_up_proj", (experts, hidden, 2 * inner), "linear", count),
        Tensor(f"{name}.experts.down_proj", (experts, inner, hidden), "linear", count),
        *linear(f"{name}.router", hidden, experts, count=count),
        *gated_mlp(f"{name}.shared_expert", hidden, inner, count=count),
    )


def _read(config: Settings) -> Architecture:
    sizes, inner = Sizes.of(config), config.size("intermediate_size")
    experts, used = chosen_experts(config, "num_local_experts")
    sparse, activation = _sparse_layers(config, sizes.layers), config.text("hidden_act")
    sparse_mlp = Mlp(inner, True, activation, experts, used, shared_intermediate=inner)
    dense_mlp = Mlp(config.size("intermediate_size_mlp"), gated=True, activation=activation)
    bias, dense = config.flag("attention_bias"), sizes.layers - len(sparse)
    layers = tuple(
        Layer(attention, sparse_mlp if index in sparse else dense_mlp, "rmsnorm")
        for index, attention in enumerate(
            attentions(config, sizes, _layer_types(config, sizes.layers), qk_norm=config.flag("use_qk_norm"))
        )
    )
    blocks = (
        *attention_tensors(sizes, qkv_bias=bias, output_bias=bias),
        *(_experts(sizes.hidden, inner, experts, len(sparse)) if sparse else ()),
        *(
            gated_mlp("model.layers.*.feed_forward", sizes.hidden, dense_mlp.intermediate, count=dense)
            if dense
            else ()
        ),
        *block_norms(sizes, "input_layernorm", "post_attention_layernorm"),
    )
    return assemble(config, "llama4_text", sizes, layers, blocks)


FAMILIES = (Family("llama4_text", _DEFAULTS, _read, {"num_experts": "num_local_experts"}),)
