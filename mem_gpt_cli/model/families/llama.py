"""Llama and the dense decoders that differ from it by a few switches.

Source of each variant: transformers' ``models/<model_type>/modeling_<model_type>.py``; Llama is
arXiv:2302.13971, grouped-query attention arXiv:2305.13245, OLMo 2's norms arXiv:2501.00656.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from mem_gpt_cli.model.architecture import Architecture, Layer, Mlp
from mem_gpt_cli.model.families.decoder import (
    DEFAULTS,
    FULL,
    LAYER_TYPES,
    SLIDING,
    QkNorm,
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

_PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Variant:
    """How a dense decoder differs from Llama.

    A bias is a key of the config or fixed; ``norms`` empty means norms without weights (OLMo).
    ``rotary_by_type`` keeps one set of rotary frequencies a layer type.
    """

    qkv_bias: str | bool = "attention_bias"
    output_bias: str | bool = "attention_bias"
    mlp_bias: str | bool = False
    qk_norm: QkNorm | None = None
    norms: tuple[str, ...] = _PRE_NORMS
    rotary_by_type: bool = False


def layer_types(config: Settings, model_type: str, layers: int) -> tuple[str, ...]:
    """Which attention each layer has, from ``layer_types`` or the rule that stands in for it."""
    given = config.layer_types(layers, LAYER_TYPES)
    if given or not config.has("sliding_window"):
        return given or (FULL,) * layers
    if model_type in ("olmo3", "exaone4"):
        return pattern(layers, every=config.size("sliding_window_pattern", 4))
    if model_type in ("qwen2", "qwen3", "smollm3") and not config.flag("use_sliding_window"):
        return (FULL,) * layers
    if model_type in ("qwen2", "qwen3"):
        first = config.count("max_window_layers")
        return tuple(SLIDING if index >= first else FULL for index in range(layers))
    if model_type == "smollm3":
        every = config.size("no_rope_layer_interval")
        rotated = config.indices("no_rope_layers") or [(i + 1) % every for i in range(layers)]
        return tuple(FULL if has_rotary else SLIDING for has_rotary in rotated)
    return (SLIDING,) * layers


def _read(model_type: str, variant: Variant, config: Settings) -> Architecture:
    sizes = Sizes.of(config)
    types = layer_types(config, model_type, sizes.layers)
    intermediate = config.size("intermediate_size")
    mlp = Mlp(intermediate, gated=True, activation=config.text("hidden_act"))
    blocks = (
        *attention_tensors(
            sizes,
            qkv_bias=config.switch(variant.qkv_bias),
            output_bias=config.switch(variant.output_bias),
            qk_norm=variant.qk_norm,
        ),
        *gated_mlp(
            "model.layers.*.mlp",
            sizes.hidden,
            intermediate,
            bias=config.switch(variant.mlp_bias),
            count=sizes.layers,
        ),
        *block_norms(sizes, *variant.norms),
    )
    return assemble(
        config,
        model_type,
        sizes,
        tuple(
            Layer(attention, mlp, "rmsnorm" if variant.norms else "layernorm")
            for attention in attentions(config, sizes, types, qk_norm=variant.qk_norm is not None)
        ),
        blocks,
        final_norm=None if variant.norms else (),
        rotary_types=tuple(sorted(set(types))) if variant.rotary_by_type else (),
    )


_BIAS = {"attention_bias": False}
_QWEN = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_OLMO = {"vocab_size": 50304, **_BIAS}
_SMOLLM3 = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "layer_types": None,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    **_BIAS,
}
_MISTRAL = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "head_dim": None,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_GRANITE = {
    "mlp_bias": False,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    **_BIAS,
}

_ERNIE = {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "use_bias": False,
}
_EXAONE4 = {
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_types": None,
}

_VARIANTS: dict[str, tuple[Variant, dict[str, Any]]] = {
    "llama": (
        Variant(mlp_bias="mlp_bias"),
        {"mlp_bias": False, "head_dim": None, "pretraining_tp": 1, **_BIAS},
    ),
    "mistral": (Variant(qkv_bias=False, output_bias=False), _MISTRAL),
    "qwen2": (Variant(qkv_bias=True, output_bias=False), _QWEN),
    "qwen3": (Variant(qk_norm="head"), {**_QWEN, "head_dim": 128, **_BIAS}),
    "olmo": (Variant(norms=()), {**_OLMO, "clip_qkv": None}),
    "olmo2": (Variant(qk_norm="projection", norms=_POST_NORMS), {**_OLMO, "rms_norm_eps": 1e-5}),
    "olmo3": (
        Variant(qk_norm="projection", norms=_POST_NORMS, rotary_by_type=True),
        {**_OLMO, "rms_norm_eps": 1e-5, "sliding_window": 4096, "layer_types": None},
    ),
    "smollm3": (Variant(mlp_bias="mlp_bias"), _SMOLLM3),
    "granite": (Variant(mlp_bias="mlp_bias"), _GRANITE),
    "ernie4_5": (Variant("use_bias", "use_bias", "use_bias"), _ERNIE),
    "exaone4": (Variant(False, False, qk_norm="head", norms=_POST_NORMS), _EXAONE4),
}


def _defaults(model_type: str, own: dict[str, Any]) -> dict[str, Any]:
    """Llama's defaults and the variant's, less the key that its config class does not have."""
    absent = {"olmo": "rms_norm_eps", "ernie4_5": "attention_dropout"}.get(model_type)
    return {key: value for key, value in (DEFAULTS | own).items() if key != absent}


FAMILIES = tuple(
    Family(model_type, _defaults(model_type, own), partial(_read, model_type, variant))
    for model_type, (variant, own) in _VARIANTS.items()
)
