"""Google's Gemma 1 to 3 (arXiv:2403.08295, 2408.00118, 2503.19786): wide heads, tied embeddings.

Sources: transformers' ``models/gemma``, ``gemma2`` and ``gemma3``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mem_gpt_cli.model.architecture import Architecture, Layer, Mlp, Tensor
from mem_gpt_cli.model.families.decoder import (
    DEFAULTS,
    FULL,
    LAYER_TYPES,
    Sizes,
    assemble,
    attention_tensors,
    attentions,
    block_norms,
    pattern,
)
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.tensors import gated_mlp
from mem_gpt_cli.model.settings import Settings

_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _layer_types(config: Settings, model_type: str, layers: int) -> tuple[str, ...]:
    if model_type == "gemma":
        return (FULL,) * layers
    every = 2 if model_type == "gemma2" else config.size("sliding_window_pattern")
    return config.layer_types(layers, LAYER_TYPES) or pattern(layers, every)


def _read(model_type: str, config: Settings) -> Architecture:
    sizes, inner = Sizes.of(config), config.size("intermediate_size")
    third = model_type == "gemma3_text"
    names = _TWO_NORMS if model_type == "gemma" else _FOUR_NORMS
    activation = config.text("hidden_act" if model_type == "gemma" else "hidden_activation")
    bias, types = config.flag("attention_bias"), _layer_types(config, model_type, sizes.layers)
    mlp = Mlp(inner, gated=True, activation="gelu_pytorch_tanh" if activation == "gelu" else activation)
    layers = tuple(
        Layer(attention, mlp, "rmsnorm", norms=len(names))
        for attention in attentions(config, sizes, types, qk_norm=third)
    )
    blocks = (
        *attention_tensors(sizes, qkv_bias=bias, output_bias=bias, qk_norm="head" if third else None),
        *gated_mlp("model.layers.*.mlp", sizes.hidden, inner, count=sizes.layers),
        *block_norms(sizes, *names),
    )
    return assemble(
        config,
        model_type,
        sizes,
        layers,
        blocks,
        extra=(Tensor("model.embed_tokens.embed_scale", (), "buffer"),),
        rotary_types=tuple(sorted(set(types))) if third else (),
        final_logit_softcap=config.has("final_logit_softcapping"),
    )


_GEMMA: dict[str, Any] = {
    **DEFAULTS,
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "attention_bias": False,
}
_GEMMA2: dict[str, Any] = {
    **{key: value for key, value in _GEMMA.items() if key != "hidden_act"},
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
_GEMMA3: dict[str, Any] = {
    **_GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "sliding_window_pattern": 6,
    "rope_local_base_freq": 10000.0,
}

FAMILIES = (
    Family("gemma", _GEMMA, partial(_read, "gemma")),
    Family("gemma2", _GEMMA2, partial(_read, "gemma2")),
    Family("gemma3_text", _GEMMA3, partial(_read, "gemma3_text")),
)
