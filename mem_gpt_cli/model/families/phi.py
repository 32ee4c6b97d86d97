"""Microsoft's Phi (arXiv:2306.11644, 2309.05463) and Phi-3 to Phi-4 (arXiv:2404.14219, 2412.08905).

Sources: transformers' ``models/phi`` and ``models/phi3``.
"""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.model.architecture import Architecture, Layer, Mlp
from mem_gpt_cli.model.families.decoder import (
    DEFAULTS,
    FULL,
    LAYER_TYPES,
    SLIDING,
    Sizes,
    assemble,
    attention_tensors,
    attentions,
    block_norms,
)
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.tensors import Tensors, layernorm, linear
from mem_gpt_cli.model.settings import Settings


def _read_phi(config: Settings) -> Architecture:
    sizes, inner = Sizes.of(config), config.size("intermediate_size")
    block, count = "model.layers.*", sizes.layers
    normed = config.flag("qk_layernorm")
    head_norms: Tensors = ()
    if normed:
        head_norms = (
            *layernorm(f"{block}.self_attn.q_layernorm", sizes.head_dim, count=count),
            *layernorm(f"{block}.self_attn.k_layernorm", sizes.head_dim, count=count),
        )
    mlp = Mlp(inner, gated=False, activation=config.text("hidden_act"))
    layers = tuple(
        Layer(
            attention,
            mlp,
            "layernorm",
            norms=1,
            parallel=True,
            residual_dropout=config.probability("resid_pdrop"),
        )
        for attention in attentions(config, sizes, (FULL,) * count, qk_norm=normed)
    )
    blocks = (
        *attention_tensors(sizes, qkv_bias=True, output_bias=True, output="dense"),
        *head_norms,
        *linear(f"{block}.mlp.fc1", sizes.hidden, inner, bias=True, count=count),
        *linear(f"{block}.mlp.fc2", inner, sizes.hidden, bias=True, count=count),
        *layernorm(f"{block}.input_layernorm", sizes.hidden, count=count),
    )
    return assemble(
        config,
        "phi",
        sizes,
        layers,
        blocks,
        final_norm=layernorm("model.final_layernorm", sizes.hidden),
        head_bias=True,
        embedding_dropout=config.probability("embd_pdrop"),
    )


def _read_phi3(config: Settings) -> Architecture:
    """One matrix for queries, keys and values, one for the gate and the up projection."""
    sizes, inner = Sizes.of(config), config.size("intermediate_size")
    block, count = "model.layers.*", sizes.layers
    types = config.layer_types(count, LAYER_TYPES) or (
        (SLIDING if config.has("sliding_window") else FULL,) * count
    )
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    mlp = Mlp(inner, gated=True, activation=config.text("hidden_act"), fused_gate=True)
    layers = tuple(
        Layer(attention, mlp, "rmsnorm", residual_dropout=config.probability("resid_pdrop"))
        for attention in attentions(config, sizes, types, fused_qkv=True)
    )
    blocks = (
        *linear(f"{block}.self_attn.qkv_proj", sizes.hidden, queries + 2 * keys, count=count),
        *linear(f"{block}.self_attn.o_proj", queries, sizes.hidden, count=count),
        *linear(f"{block}.mlp.gate_up_proj", sizes.hidden, 2 * inner, count=count),
        *linear(f"{block}.mlp.down_proj", inner, sizes.hidden, count=count),
        *block_norms(sizes, "input_layernorm", "post_attention_layernorm"),
    )
    return assemble(config, "phi3", sizes, layers, blocks)


_PHI_DEFAULTS: dict[str, Any] = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attention_dropout": 0.0,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": None,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
}
_PHI3_DEFAULTS: dict[str, Any] = {
    **DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}

FAMILIES = (Family("phi", _PHI_DEFAULTS, _read_phi), Family("phi3", _PHI3_DEFAULTS, _read_phi3))
