"""DeepSeek-V2 and V3: multi-head latent attention and shared experts (arXiv:2405.04434, 2412.19437).

Sources: transformers' ``models/deepseek_v2`` and ``deepseek_v3``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mem_gpt_cli.model.architecture import Architecture, Attention, Layer, Mlp, Tensor
from mem_gpt_cli.model.families.decoder import DEFAULTS, Sizes, assemble, block_norms
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.mixture import chosen_experts
from mem_gpt_cli.model.families.tensors import Tensors, gated_experts, gated_mlp, linear, rmsnorm
from mem_gpt_cli.model.settings import Settings

_ATTENTION = "model.layers.*.self_attn"


def _attention(config: Settings) -> Attention:
    """Each head has a part without and a part with rotation; the latter is one for all heads of the keys."""
    heads, rope = config.size("num_attention_heads"), config.size("qk_rope_head_dim")
    return Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=config.size("qk_nope_head_dim") + rope,
        value_dim=config.size("v_head_dim"),
        rotary_dim=rope,
        q_lora_rank=config.optional_size("q_lora_rank"),
        kv_lora_rank=config.size("kv_lora_rank"),
        rope_head_dim=rope,
        dropout=config.probability("attention_dropout"),
    )


def _attention_tensors(config: Settings, attention: Attention, hidden: int, count: int) -> Tensors:
    heads, bias = attention.heads, config.flag("attention_bias")
    rope, latent = config.size("qk_rope_head_dim"), config.size("kv_lora_rank")
    nope, queries = attention.head_dim - rope, heads * attention.head_dim
    rank = attention.q_lora_rank
    query = linear(f"{_ATTENTION}.q_proj", hidden, queries, count=count)
    if rank is not None:
        query = (
            *linear(f"{_ATTENTION}.q_a_proj", hidden, rank, bias=bias, count=count),
            *rmsnorm(f"{_ATTENTION}.q_a_layernorm", rank, count=count),
            *linear(f"{_ATTENTION}.q_b_proj", rank, queries, count=count),
        )
    return (
        *query,
        *linear(f"{_ATTENTION}.kv_a_proj_with_mqa", hidden, latent + rope, bias=bias, count=count),
        *rmsnorm(f"{_ATTENTION}.kv_a_layernorm", latent, count=count),
        *linear(f"{_ATTENTION}.kv_b_proj", latent, heads * (nope + attention.value_dim), count=count),
        *linear(f"{_ATTENTION}.o_proj", heads * attention.value_dim, hidden, bias=bias, count=count),
    )


def _experts(model_type: str, hidden: int, mlp: Mlp, count: int) -> Tensors:
    name = "model.layers.*.mlp"
    correction = Tensor(f"{name}.gate.e_score_correction_bias", (mlp.experts,), "buffer", count)
    return (
        Tensor(f"{name}.gate.weight", (mlp.experts, hidden), "other", count),
        *((correction,) if model_type == "deepseek_v3" else ()),
        *gated_experts(f"{name}.experts", mlp.experts, hidden, mlp.intermediate, count=count),
        *gated_mlp(f"{name}.shared_experts", hidden, mlp.shared_intermediate, count=count),
    )


def _read(model_type: str, config: Settings) -> Architecture:
    hidden, layers = config.size("hidden_size"), config.size("num_hidden_layers")
    attention, activation = _attention(config), config.text("hidden_act")
    sizes = Sizes(
        vocab=config.size("vocab_size"),
        hidden=hidden,
        layers=layers,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        rotary_dim=attention.rotary_dim,
    )
    experts, used = chosen_experts(config, "n_routed_experts")
    inner = config.size("moe_intermediate_size")
    sparse_mlp = Mlp(
        inner, True, activation, experts, used, shared_intermediate=inner * config.size("n_shared_experts")
    )
    dense_mlp = Mlp(config.size("intermediate_size"), gated=True, activation=activation)
    dense = min(config.count("first_k_dense_replace"), layers)
    blocks = (
        *_attention_tensors(config, attention, hidden, layers),
        *(gated_mlp("model.layers.*.mlp", hidden, dense_mlp.intermediate, count=dense) if dense else ()),
        *(_experts(model_type, hidden, sparse_mlp, layers - dense) if layers > dense else ()),
        *block_norms(sizes, "input_layernorm", "post_attention_layernorm"),
    )
    return assemble(
        config,
        model_type,
        sizes,
        tuple(
            Layer(attention, dense_mlp if index < dense else sparse_mlp, "rmsnorm") for index in range(layers)
        ),
        blocks,
    )


_V2: dict[str, Any] = {
    **DEFAULTS,
    "vocab_size": 102400,
    "pretraining_tp": 1,
    "attention_bias": False,
    "mlp_bias": False,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_group": None,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "routed_scaling_factor": 1.0,
    "topk_group": None,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "v_head_dim": 128,
    "num_experts_per_tok": None,
    "moe_intermediate_size": 1407,
    "output_router_logits": False,
}
_V3: dict[str, Any] = {
    **DEFAULTS,
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "pretraining_tp": 1,
    "rope_interleave": True,
    "attention_bias": False,
    "num_nextn_predict_layers": 1,
    "output_router_logits": False,
}

FAMILIES = (
    Family("deepseek_v2", _V2, partial(_read, "deepseek_v2"), {"num_experts": "n_routed_experts"}),
    Family(
        "deepseek_v3",
        _V3,
        partial(_read, "deepseek_v3"),
        {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    ),
)
