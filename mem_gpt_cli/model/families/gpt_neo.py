"""EleutherAI's GPT-Neo, GPT-J and GPT-NeoX, and Salesforce's CodeGen, which is GPT-J with one QKV matrix.

Sources: transformers' ``models/gpt_neo``, ``gptj``, ``codegen`` and ``gpt_neox``; GPT-NeoX-20B is
arXiv:2204.06745, Pythia arXiv:2304.01373.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model.architecture import Architecture, Attention, Layer, Mlp, Tensor
from mem_gpt_cli.model.families.decoder import rotary_share
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.tensors import (
    BOOL,
    FLOAT32,
    Tensors,
    embedding,
    layernorm,
    linear,
    output_head,
    rotary,
)
from mem_gpt_cli.model.settings import Settings


def _read_gpt_neo(config: Settings) -> Architecture:
    hidden, layers, vocab = config.size("hidden_size"), config.size("num_layers"), config.size("vocab_size")
    positions, tied = config.size("max_position_embeddings"), config.flag("tie_word_embeddings")
    inner, head_dim = (
        config.size("intermediate_size", 4 * hidden),
        config.divisible("hidden_size", "num_heads"),
    )
    _check_attention_types(config, layers)
    # A "local" layer masks more, but keeps all positions and computes all scores: no window here.
    layer = Layer(
        attention=Attention(
            heads=config.size("num_heads"),
            kv_heads=config.size("num_heads"),
            head_dim=head_dim,
            value_dim=head_dim,
            dropout=config.probability("attention_dropout"),
        ),
        mlp=Mlp(inner, gated=False, activation=config.text("activation_function")),
        norm="layernorm",
        residual_dropout=config.probability("resid_dropout"),
    )
    block, attention = "transformer.h.*", "transformer.h.*.attn.attention"
    return Architecture(
        model_type="gpt_neo",
        hidden=hidden,
        vocab=vocab,
        layers=(layer,) * layers,
        tensors=(
            *embedding("transformer.wte", vocab, hidden),
            *embedding("transformer.wpe", positions, hidden),
            *layernorm(f"{block}.ln_1", hidden, count=layers),
            *layernorm(f"{block}.ln_2", hidden, count=layers),
            *linear(f"{attention}.q_proj", hidden, hidden, count=layers),
            *linear(f"{attention}.k_proj", hidden, hidden, count=layers),
            *linear(f"{attention}.v_proj", hidden, hidden, count=layers),
            *linear(f"{attention}.out_proj", hidden, hidden, bias=True, count=layers),
            *linear(f"{block}.mlp.c_fc", hidden, inner, bias=True, count=layers),
            *linear(f"{block}.mlp.c_proj", inner, hidden, bias=True, count=layers),
            *layernorm("transformer.ln_f", hidden),
            *output_head("lm_head", hidden, vocab, tied=tied),
            Tensor(f"{attention}.bias", (1, 1, positions, positions), "buffer", layers, BOOL),
        ),
        tied_embeddings=tied,
        max_positions=positions,
        learned_positions=True,
        embedding_dropout=config.probability("embed_dropout"),
    )


def _check_attention_types(config: Settings, layers: int) -> None:
    """GPT-Neo's config names each layer's attention; the names must be as many as the layers."""
    try:
        named = sum(len(names) * times for names, times in config.get("attention_types"))
    except (TypeError, ValueError):
        raise config.refuse("attention_types", 'a list such as [[["global", "local"], 12]]') from None
    if named != layers:
        raise UsageError(
            f"{config.where}: 'attention_types' names {named} layers, 'num_layers' is {layers}: "
            "make them agree"
        )


def _read_gptj(model_type: str, config: Settings) -> Architecture:
    """GPT-J and CodeGen: attention and MLP read one norm's output; sines of all positions in each layer."""
    hidden, layers, vocab = config.size("n_embd"), config.size("n_layer"), config.size("vocab_size")
    positions, tied = config.size("n_positions"), config.flag("tie_word_embeddings")
    inner, head_dim = config.size("n_inner", 4 * hidden), config.divisible("n_embd", "n_head")
    fused = model_type == "codegen"
    block, attention = "transformer.h.*", "transformer.h.*.attn"
    matrices: Tensors = (
        linear(f"{attention}.qkv_proj", hidden, 3 * hidden, count=layers)
        if fused
        else tuple(
            tensor
            for name in ("q_proj", "k_proj", "v_proj")
            for tensor in linear(f"{attention}.{name}", hidden, hidden, count=layers)
        )
    )
    sines = (positions, config.optional_size("rotary_dim") or hidden)
    layer = Layer(
        attention=Attention(
            heads=config.size("n_head"),
            kv_heads=config.size("n_head"),
            head_dim=head_dim,
            value_dim=head_dim,
            fused_qkv=fused,
            rotary_dim=config.optional_size("rotary_dim") or head_dim,
            dropout=config.probability("attn_pdrop"),
        ),
        mlp=Mlp(inner, gated=False, activation=config.text("activation_function")),
        norm="layernorm",
        norms=1,
        parallel=True,
        residual_dropout=config.probability("resid_pdrop"),
    )
    return Architecture(
        model_type=model_type,
        hidden=hidden,
        vocab=vocab,
        layers=(layer,) * layers,
        tensors=(
            *embedding("transformer.wte", vocab, hidden),
            *layernorm(f"{block}.ln_1", hidden, count=layers),
            *matrices,
            *linear(f"{attention}.out_proj", hidden, hidden, count=layers),
            *linear(f"{block}.mlp.fc_in", hidden, inner, bias=True, count=layers),
            *linear(f"{block}.mlp.fc_out", inner, hidden, bias=True, count=layers),
            *layernorm("transformer.ln_f", hidden),
            *output_head("lm_head", hidden, vocab, tied=tied, bias=True),
            Tensor(f"{attention}.embed_positions", sines, "buffer", layers, FLOAT32),
        ),
        tied_embeddings=tied,
        max_positions=positions,
        embedding_dropout=config.probability("embd_pdrop"),
    )


def _read_gpt_neox(config: Settings) -> Architecture:
    hidden, layers = config.size("hidden_size"), config.size("num_hidden_layers")
    vocab, inner = config.size("vocab_size"), config.size("intermediate_size")
    tied, bias = config.flag("tie_word_embeddings"), config.flag("attention_bias")
    heads, head_dim = (
        config.size("num_attention_heads"),
        config.divisible("hidden_size", "num_attention_heads"),
    )
    rotary_dim = int(head_dim * rotary_share(config, "rotary_pct"))
    layer = Layer(
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            value_dim=head_dim,
            fused_qkv=True,
            rotary_dim=rotary_dim,
            dropout=config.probability("attention_dropout"),
        ),
        mlp=Mlp(inner, gated=False, activation=config.text("hidden_act")),
        norm="layernorm",
        parallel=config.flag("use_parallel_residual"),
        residual_dropout=config.probability("hidden_dropout"),
    )
    block = "gpt_neox.layers.*"
    return Architecture(
        model_type="gpt_neox",
        hidden=hidden,
        vocab=vocab,
        layers=(layer,) * layers,
        tensors=(
            *embedding("gpt_neox.embed_in", vocab, hidden),
            *layernorm(f"{block}.input_layernorm", hidden, count=layers),
            *layernorm(f"{block}.post_attention_layernorm", hidden, count=layers),
            *linear(f"{block}.attention.query_key_value", hidden, 3 * hidden, bias=bias, count=layers),
            *linear(f"{block}.attention.dense", hidden, hidden, bias=bias, count=layers),
            *linear(f"{block}.mlp.dense_h_to_4h", hidden, inner, bias=True, count=layers),
            *linear(f"{block}.mlp.dense_4h_to_h", inner, hidden, bias=True, count=layers),
            *layernorm("gpt_neox.final_layer_norm", hidden),
            *output_head("lm_head", hidden, vocab, tied=tied),
            *rotary("gpt_neox.rotary_emb", rotary_dim),
        ),
        tied_embeddings=tied,
        max_positions=config.optional_size("max_position_embeddings"),
        embedding_dropout=config.probability("hidden_dropout"),
    )


_GPTJ_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}
_GPTJ_ALIASES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_GPT_NEO_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "max_position_embeddings": 2048,
    "hidden_size": 2048,
    "num_layers": 24,
    "attention_types": [[["global", "local"], 12]],
    "num_heads": 16,
    "intermediate_size": None,
    "window_size": 256,
    "activation_function": "gelu_new",
    "resid_dropout": 0.0,
    "embed_dropout": 0.0,
    "attention_dropout": 0.0,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
_GPT_NEOX_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "rope_parameters": None,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000.0,
    "attention_bias": True,
}

FAMILIES = (
    Family(
        "gpt_neo",
        _GPT_NEO_DEFAULTS,
        _read_gpt_neo,
        {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    ),
    Family("gptj", _GPTJ_DEFAULTS, partial(_read_gptj, "gptj"), _GPTJ_ALIASES),
    Family("codegen", {**_GPTJ_DEFAULTS, "n_ctx": 2048}, partial(_read_gptj, "codegen"), _GPTJ_ALIASES),
    Family("gpt_neox", _GPT_NEOX_DEFAULTS, _read_gpt_neox),
)
