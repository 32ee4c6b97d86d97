"""Llama's layout with LayerNorm: StarCoder2 (arXiv:2402.19173), StableLM (2402.17834), Cohere's Command R.

Sources: transformers' ``models/starcoder2``, ``stablelm``, ``cohere`` and ``cohere2``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mem_gpt_cli.model.architecture import Architecture, Layer, Mlp, Tensor
from mem_gpt_cli.model.families.decoder import (
    DEFAULTS,
    FULL,
    LAYER_TYPES,
    SLIDING,
    Sizes,
    assemble,
    attention_tensors,
    attentions,
    pattern,
)
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.tensors import Tensors, gated_mlp, layernorm, linear
from mem_gpt_cli.model.settings import Settings

_BLOCK = "model.layers.*"


def _read_starcoder2(config: Settings) -> Architecture:
    sizes, inner = Sizes.of(config), config.size("intermediate_size")
    bias, count = config.flag("use_bias"), sizes.layers
    types = config.layer_types(count, LAYER_TYPES) or (
        (SLIDING if config.has("sliding_window") else FULL,) * count
    )
    mlp = Mlp(inner, gated=False, activation=config.text("hidden_act"))
    layers = tuple(
        Layer(attention, mlp, "layernorm", residual_dropout=config.probability("residual_dropout"))
        for attention in attentions(config, sizes, types)
    )
    blocks = (
        *attention_tensors(sizes, qkv_bias=bias, output_bias=bias),
        *linear(f"{_BLOCK}.mlp.c_fc", sizes.hidden, inner, bias=bias, count=count),
        *linear(f"{_BLOCK}.mlp.c_proj", inner, sizes.hidden, bias=bias, count=count),
        *layernorm(f"{_BLOCK}.input_layernorm", sizes.hidden, count=count),
        *layernorm(f"{_BLOCK}.post_attention_layernorm", sizes.hidden, count=count),
    )
    return assemble(
        config,
        "starcoder2",
        sizes,
        layers,
        blocks,
        final_norm=layernorm("model.norm", sizes.hidden),
        embedding_dropout=config.probability("embedding_dropout"),
    )


def _read_stablelm(config: Settings) -> Architecture:
    sizes, inner = Sizes.of(config), config.size("intermediate_size")
    parallel, normed, count = (
        config.flag("use_parallel_residual"),
        config.flag("qk_layernorm"),
        sizes.layers,
    )
    names = ("input_layernorm",) if parallel else ("input_layernorm", "post_attention_layernorm")
    head_norms: Tensors = ()
    if normed:
        # One norm module for each head, unlike the families that share one.
        name, heads, keys = f"{_BLOCK}.self_attn", sizes.heads * count, sizes.kv_heads * count
        head_norms = (
            Tensor(f"{name}.q_layernorm.norms.*.weight", (sizes.head_dim,), "norm", heads),
            Tensor(f"{name}.k_layernorm.norms.*.weight", (sizes.head_dim,), "norm", keys),
        )
    mlp = Mlp(inner, gated=True, activation=config.text("hidden_act"))
    layers = tuple(
        Layer(
            attention,
            mlp,
            "layernorm",
            norms=len(names),
            parallel=parallel,
            residual_dropout=config.probability("hidden_dropout"),
        )
        for attention in attentions(config, sizes, (FULL,) * count, qk_norm=normed)
    )
    blocks = (
        *attention_tensors(sizes, qkv_bias=config.flag("use_qkv_bias")),
        *head_norms,
        *gated_mlp(f"{_BLOCK}.mlp", sizes.hidden, inner, count=count),
        *(tensor for name in names for tensor in layernorm(f"{_BLOCK}.{name}", sizes.hidden, count=count)),
    )
    final_norm = layernorm("model.norm", sizes.hidden)
    return assemble(config, "stablelm", sizes, layers, blocks, final_norm=final_norm)


def _read_cohere(model_type: str, config: Settings) -> Architecture:
    """One norm without a bias feeds attention and MLP side by side."""
    sizes, inner = Sizes.of(config), config.size("intermediate_size")
    bias, count = config.flag("attention_bias"), sizes.layers
    normed = model_type == "cohere" and config.flag("use_qk_norm")
    types: tuple[str, ...] = (FULL,) * count
    if model_type == "cohere2":
        types = config.layer_types(count, LAYER_TYPES) or pattern(
            count, config.size("sliding_window_pattern")
        )
    head_norms: Tensors = ()
    if normed:
        head_norms = (
            Tensor(f"{_BLOCK}.self_attn.q_norm.weight", (sizes.heads, sizes.head_dim), "norm", count),
            Tensor(f"{_BLOCK}.self_attn.k_norm.weight", (sizes.kv_heads, sizes.head_dim), "norm", count),
        )
    mlp = Mlp(inner, gated=True, activation=config.text("hidden_act"))
    layers = tuple(
        Layer(attention, mlp, "layernorm", norms=1, parallel=True)
        for attention in attentions(config, sizes, types, qk_norm=normed)
    )
    blocks = (
        *attention_tensors(sizes, qkv_bias=bias, output_bias=bias),
        *head_norms,
        *gated_mlp(f"{_BLOCK}.mlp", sizes.hidden, inner, count=count),
        *layernorm(f"{_BLOCK}.input_layernorm", sizes.hidden, bias=False, count=count),
    )
    return assemble(config, model_type, sizes, layers, blocks)


_STARCODER2: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "rope_parameters": None,
    "sliding_window": None,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "use_bias": True,
    "tie_word_embeddings": True,
}
_STABLELM: dict[str, Any] = {
    "vocab_size": 50304,
    "intermediate_size": 6912,
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": None,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
_COHERE: dict[str, Any] = {
    **{key: value for key, value in DEFAULTS.items() if key != "rms_norm_eps"},
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "logit_scale": 0.0625,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
}
_COHERE2 = {**_COHERE, "sliding_window": 4096, "sliding_window_pattern": 4, "layer_types": None}

FAMILIES = (
    Family("starcoder2", _STARCODER2, _read_starcoder2),
    Family("stablelm", _STABLELM, _read_stablelm),
    Family("cohere", {**_COHERE, "use_qk_norm": False}, partial(_read_cohere, "cohere")),
    Family("cohere2", _COHERE2, partial(_read_cohere, "cohere2")),
)
