"""GPT-2 and GPT-BigCode (StarCoder): learned positions, LayerNorm, plain GELU MLP.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; transformers'
``models/gpt2`` and ``models/gpt_bigcode``.
"""

from __future__ import annotations

from mem_gpt_cli.model.architecture import Architecture, Attention, Layer, Mlp, Tensor
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.tensors import (
    BOOL,
    Tensors,
    conv1d,
    embedding,
    layernorm,
    linear,
    output_head,
)
from mem_gpt_cli.model.settings import Settings

_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}


def _read(
    config: Settings, model_type: str, kv_heads: int, blocks: Tensors, buffers: Tensors
) -> Architecture:
    """What GPT-2 and GPT-BigCode share; ``blocks`` are the matrices of their layers."""
    hidden, layers, vocab = config.size("n_embd"), config.size("n_layer"), config.size("vocab_size")
    positions, tied = config.size("n_positions"), config.flag("tie_word_embeddings")
    head_dim = config.divisible("n_embd", "n_head")
    layer = Layer(
        attention=Attention(
            heads=config.size("n_head"),
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            fused_qkv=True,
            dropout=config.probability("attn_pdrop"),
        ),
        mlp=Mlp(
            config.size("n_inner", 4 * hidden), gated=False, activation=config.text("activation_function")
        ),
        norm="layernorm",
        residual_dropout=config.probability("resid_pdrop"),
    )
    return Architecture(
        model_type=model_type,
        hidden=hidden,
        vocab=vocab,
        layers=(layer,) * layers,
        tensors=(
            *embedding("transformer.wte", vocab, hidden),
            *embedding("transformer.wpe", positions, hidden),
            *layernorm("transformer.h.*.ln_1", hidden, count=layers),
            *layernorm("transformer.h.*.ln_2", hidden, count=layers),
            *blocks,
            *layernorm("transformer.ln_f", hidden),
            *output_head("lm_head", hidden, vocab, tied=tied),
            *buffers,
        ),
        tied_embeddings=tied,
        max_positions=positions,
        learned_positions=True,
        embedding_dropout=config.probability("embd_pdrop"),
    )


def _read_gpt2(config: Settings) -> Architecture:
    hidden, layers = config.size("n_embd"), config.size("n_layer")
    inner = config.size("n_inner", 4 * hidden)
    blocks = (
        *conv1d("transformer.h.*.attn.c_attn", hidden, 3 * hidden, count=layers),
        *conv1d("transformer.h.*.attn.c_proj", hidden, hidden, count=layers),
        *conv1d("transformer.h.*.mlp.c_fc", hidden, inner, count=layers),
        *conv1d("transformer.h.*.mlp.c_proj", inner, hidden, count=layers),
    )
    return _read(config, "gpt2", config.size("n_head"), blocks, ())


def _read_gpt_bigcode(config: Settings) -> Architecture:
    hidden, layers, positions = config.size("n_embd"), config.size("n_layer"), config.size("n_positions")
    inner = config.size("n_inner", 4 * hidden)
    kv_heads = 1 if config.flag("multi_query") else config.size("n_head")
    qkv = hidden + 2 * kv_heads * config.divisible("n_embd", "n_head")
    blocks = (
        *linear("transformer.h.*.attn.c_attn", hidden, qkv, bias=True, count=layers),
        *linear("transformer.h.*.attn.c_proj", hidden, hidden, bias=True, count=layers),
        *linear("transformer.h.*.mlp.c_fc", hidden, inner, bias=True, count=layers),
        *linear("transformer.h.*.mlp.c_proj", inner, hidden, bias=True, count=layers),
    )
    mask = Tensor("transformer.bias", (positions, positions), "buffer", dtype_bytes=BOOL)
    return _read(config, "gpt_bigcode", kv_heads, blocks, (mask,))


FAMILIES = (
    Family(
        "gpt2",
        _DEFAULTS | {"scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
        _read_gpt2,
        _ALIASES,
    ),
    Family(
        "gpt_bigcode",
        _DEFAULTS
        | {
            "activation_function": "gelu_pytorch_tanh",
            "multi_query": True,
            "attention_softmax_in_fp32": True,
            "scale_attention_softmax_in_fp32": True,
        },
        _read_gpt_bigcode,
        _ALIASES,
    ),
)
