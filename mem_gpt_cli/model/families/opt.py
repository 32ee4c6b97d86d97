"""Meta's OPT (arXiv:2205.01068): learned positions with an offset of 2, ReLU MLP.

OPT-350m norms after each part instead of before it, and its embedding is narrower than its layers.
Source: transformers' ``models/opt``.
"""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.model.architecture import Architecture, Attention, Layer, Mlp
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.tensors import Tensors, embedding, layernorm, linear, output_head
from mem_gpt_cli.model.settings import Settings

_POSITION_OFFSET = 2
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "layerdrop": 0.0,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}


def _norm(config: Settings, name: str, hidden: int, count: int = 1) -> Tensors:
    """A LayerNorm, which has no tensors where the config takes its weights away."""
    return layernorm(name, hidden, count=count) if config.flag("layer_norm_elementwise_affine") else ()


def _projections(hidden: int, width: int) -> Tensors:
    """From the embedding's width to the layers' and back, where the two differ."""
    if width == hidden:
        return ()
    return (
        *linear("model.decoder.project_in", width, hidden),
        *linear("model.decoder.project_out", hidden, width),
    )


def _read(config: Settings) -> Architecture:
    hidden, layers, vocab = (
        config.size("hidden_size"),
        config.size("num_hidden_layers"),
        config.size("vocab_size"),
    )
    positions, inner = config.size("max_position_embeddings"), config.size("ffn_dim")
    width, tied, bias = (
        config.size("word_embed_proj_dim", hidden),
        config.flag("tie_word_embeddings"),
        config.flag("enable_bias"),
    )
    heads, head_dim = (
        config.size("num_attention_heads"),
        config.divisible("hidden_size", "num_attention_heads"),
    )
    final = config.flag("do_layer_norm_before") and not config.flag("_remove_final_layer_norm")
    layer = Layer(
        attention=Attention(
            heads, heads, head_dim, value_dim=head_dim, dropout=config.probability("attention_dropout")
        ),
        mlp=Mlp(inner, gated=False, activation=config.text("activation_function")),
        norm="layernorm",
        residual_dropout=config.probability("dropout"),
    )
    block = "model.decoder.layers.*"
    return Architecture(
        model_type="opt",
        hidden=hidden,
        vocab=vocab,
        layers=(layer,) * layers,
        tensors=(
            *embedding("model.decoder.embed_tokens", vocab, width),
            *embedding("model.decoder.embed_positions", positions + _POSITION_OFFSET, hidden),
            *_projections(hidden, width),
            *linear(f"{block}.self_attn.q_proj", hidden, hidden, bias=bias, count=layers),
            *linear(f"{block}.self_attn.k_proj", hidden, hidden, bias=bias, count=layers),
            *linear(f"{block}.self_attn.v_proj", hidden, hidden, bias=bias, count=layers),
            *linear(f"{block}.self_attn.out_proj", hidden, hidden, bias=bias, count=layers),
            *_norm(config, f"{block}.self_attn_layer_norm", hidden, layers),
            *linear(f"{block}.fc1", hidden, inner, bias=bias, count=layers),
            *linear(f"{block}.fc2", inner, hidden, bias=bias, count=layers),
            *_norm(config, f"{block}.final_layer_norm", hidden, layers),
            *(_norm(config, "model.decoder.final_layer_norm", hidden) if final else ()),
            *output_head("lm_head", width, vocab, tied=tied),
        ),
        tied_embeddings=tied,
        max_positions=positions,
        learned_positions=True,
    )


FAMILIES = (Family("opt", _DEFAULTS, _read),)
