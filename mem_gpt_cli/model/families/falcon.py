"""TII's Falcon (arXiv:2311.16867): multi-query or grouped attention, parallel blocks.

Source: transformers' ``models/falcon``.
"""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model.architecture import Architecture, Attention, Layer, Mlp
from mem_gpt_cli.model.families.decoder import rotary_share
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.tensors import embedding, layernorm, linear, output_head, rotary
from mem_gpt_cli.model.settings import Settings

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_ln_in_parallel_attn": None,
    "layer_norm_epsilon": 1e-5,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "num_kv_heads": None,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "rope_parameters": None,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "tie_word_embeddings": True,
}


def _kv_heads(config: Settings, heads: int) -> int:
    """Key and value heads; ``num_kv_heads`` counts only in the new layout or without multi-query."""
    if not config.flag("new_decoder_architecture"):
        return 1 if config.flag("multi_query") else heads
    kv_heads = config.size("num_kv_heads", heads)
    if heads % kv_heads:
        raise UsageError(
            f"{config.where}: 'num_attention_heads' ({heads}) is not a multiple of 'num_kv_heads' "
            f"({kv_heads}): give each key-value head as many query heads"
        )
    return kv_heads


def _norms(config: Settings) -> tuple[str, ...]:
    """The norms of one block: two in sequence, two side by side (Falcon-40B), or one for both (Falcon-7B)."""
    if not config.flag("parallel_attn"):
        return ("post_attention_layernorm", "input_layernorm")
    beside = config.get("num_ln_in_parallel_attn")
    if beside is None:
        beside = 2 if config.flag("new_decoder_architecture") else 1
    return ("ln_attn", "ln_mlp") if beside == 2 else ("input_layernorm",)


def _read(config: Settings) -> Architecture:
    hidden, layers, vocab = (
        config.size("hidden_size"),
        config.size("num_hidden_layers"),
        config.size("vocab_size"),
    )
    heads, head_dim = (
        config.size("num_attention_heads"),
        config.divisible("hidden_size", "num_attention_heads"),
    )
    kv_heads, inner = _kv_heads(config, heads), config.size("ffn_hidden_size", 4 * hidden)
    bias, tied, alibi = config.flag("bias"), config.flag("tie_word_embeddings"), config.flag("alibi")
    norms, rotary_dim = _norms(config), 0 if alibi else int(head_dim * rotary_share(config))
    layer = Layer(
        attention=Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            fused_qkv=True,
            rotary_dim=rotary_dim,
            alibi=alibi,
            dropout=config.probability("attention_dropout"),
        ),
        mlp=Mlp(inner, gated=False, activation=config.text("activation")),
        norm="layernorm",
        norms=len(norms),
        parallel=config.flag("parallel_attn"),
        residual_dropout=config.probability("hidden_dropout"),
    )
    block, qkv = "transformer.h.*", (heads + 2 * kv_heads) * head_dim
    return Architecture(
        model_type="falcon",
        hidden=hidden,
        vocab=vocab,
        layers=(layer,) * layers,
        tensors=(
            *embedding("transformer.word_embeddings", vocab, hidden),
            *linear(f"{block}.self_attention.query_key_value", hidden, qkv, bias=bias, count=layers),
            *linear(f"{block}.self_attention.dense", hidden, hidden, bias=bias, count=layers),
            *linear(f"{block}.mlp.dense_h_to_4h", hidden, inner, bias=bias, count=layers),
            *linear(f"{block}.mlp.dense_4h_to_h", inner, hidden, bias=bias, count=layers),
            *(tensor for norm in norms for tensor in layernorm(f"{block}.{norm}", hidden, count=layers)),
            *layernorm("transformer.ln_f", hidden),
            *output_head("lm_head", hidden, vocab, tied=tied),
            *rotary("transformer.rotary_emb", head_dim),
        ),
        tied_embeddings=tied,
        max_positions=config.optional_size("max_position_embeddings"),
    )


FAMILIES = (Family("falcon", _DEFAULTS, _read, {"n_embed": "hidden_size"}),)
