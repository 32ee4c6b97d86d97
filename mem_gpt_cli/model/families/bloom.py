"""The decoders that know positions by ALiBi's score biases alone (arXiv:2108.12409): BLOOM and MPT.

Sources: transformers' ``models/bloom`` and ``models/mpt``; BLOOM is arXiv:2211.05100.
"""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.model.architecture import Architecture, Attention, Layer, Mlp
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.tensors import embedding, layernorm, linear, output_head
from mem_gpt_cli.model.settings import Settings


def _read_bloom(config: Settings) -> Architecture:
    hidden, layers, vocab = config.size("hidden_size"), config.size("n_layer"), config.size("vocab_size")
    heads, head_dim = config.size("n_head"), config.divisible("hidden_size", "n_head")
    tied, block = config.flag("tie_word_embeddings"), "transformer.h.*"
    layer = Layer(
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            value_dim=head_dim,
            fused_qkv=True,
            alibi=True,
            dropout=config.probability("attention_dropout"),
        ),
        mlp=Mlp(4 * hidden, gated=False, activation="gelu"),
        norm="layernorm",
        residual_dropout=config.probability("hidden_dropout"),
    )
    return Architecture(
        model_type="bloom",
        hidden=hidden,
        vocab=vocab,
        layers=(layer,) * layers,
        tensors=(
            *embedding("transformer.word_embeddings", vocab, hidden),
            *layernorm("transformer.word_embeddings_layernorm", hidden),
            *layernorm(f"{block}.input_layernorm", hidden, count=layers),
            *linear(f"{block}.self_attention.query_key_value", hidden, 3 * hidden, bias=True, count=layers),
            *linear(f"{block}.self_attention.dense", hidden, hidden, bias=True, count=layers),
            *layernorm(f"{block}.post_attention_layernorm", hidden, count=layers),
            *linear(f"{block}.mlp.dense_h_to_4h", hidden, 4 * hidden, bias=True, count=layers),
            *linear(f"{block}.mlp.dense_4h_to_h", 4 * hidden, hidden, bias=True, count=layers),
            *layernorm("transformer.ln_f", hidden),
            *output_head("lm_head", hidden, vocab, tied=tied),
        ),
        tied_embeddings=tied,
        max_positions=None,
    )


def _read_mpt(config: Settings) -> Architecture:
    hidden, layers, vocab = config.size("d_model"), config.size("n_layers"), config.size("vocab_size")
    heads, head_dim = config.size("n_heads"), config.divisible("d_model", "n_heads")
    tied, block = config.flag("tie_word_embeddings"), "transformer.blocks.*"
    inner = 4 * hidden  # transformers' MptMLP does not look at expansion_ratio
    attention = Settings(
        config.section("attn_config"), {"attn_pdrop": 0.0}, {}, f"{config.where}: attn_config"
    )
    dropout = attention.probability("attn_pdrop")
    layer = Layer(
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            value_dim=head_dim,
            fused_qkv=True,
            alibi=True,
            dropout=dropout,
        ),
        mlp=Mlp(inner, gated=False, activation="gelu"),
        norm="layernorm",
        residual_dropout=dropout,
    )
    return Architecture(
        model_type="mpt",
        hidden=hidden,
        vocab=vocab,
        layers=(layer,) * layers,
        tensors=(
            *embedding("transformer.wte", vocab, hidden),
            *layernorm(f"{block}.norm_1", hidden, bias=False, count=layers),
            *linear(f"{block}.attn.Wqkv", hidden, 3 * hidden, count=layers),
            *linear(f"{block}.attn.out_proj", hidden, hidden, count=layers),
            *layernorm(f"{block}.norm_2", hidden, bias=False, count=layers),
            *linear(f"{block}.ffn.up_proj", hidden, inner, count=layers),
            *linear(f"{block}.ffn.down_proj", inner, hidden, count=layers),
            *layernorm("transformer.norm_f", hidden, bias=False),
            *output_head("lm_head", hidden, vocab, tied=tied),
        ),
        tied_embeddings=tied,
        max_positions=config.optional_size("max_seq_len"),
    )


_BLOOM_DEFAULTS: dict[str, Any] = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "apply_residual_connection_post_layernorm": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "slow_but_exact": False,
    "tie_word_embeddings": True,
}
_MPT_DEFAULTS: dict[str, Any] = {
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "expansion_ratio": 4,
    "max_seq_len": 2048,
    "vocab_size": 50368,
    "resid_pdrop": 0.0,
    "emb_pdrop": 0.0,
    "layer_norm_epsilon": 1e-5,
    "learned_pos_emb": True,
    "attn_config": None,
    "init_device": "cpu",
    "logit_scale": None,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "tie_word_embeddings": True,
}

FAMILIES = (
    Family(
        "bloom",
        _BLOOM_DEFAULTS,
        _read_bloom,
        {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    ),
    Family(
        "mpt",
        _MPT_DEFAULTS,
        _read_mpt,
        {"num_attention_heads": "n_heads", "hidden_size": "d_model", "num_hidden_layers": "n_layers"},
    ),
)
