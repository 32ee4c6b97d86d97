"""Mixtures of experts in Llama's layout: Mixtral, Qwen's and OLMoE.

Sources: arXiv:2401.04088, 2407.10671, 2505.09388 and 2409.02060; transformers' ``models/mixtral``,
``qwen2_moe``, ``qwen3_moe`` and ``olmoe``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model.architecture import Architecture, Layer, Mlp, Tensor
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
)
from mem_gpt_cli.model.families.family import Family
from mem_gpt_cli.model.families.tensors import Tensors, gated_experts, gated_mlp, linear
from mem_gpt_cli.model.settings import Settings


@dataclass(frozen=True)
class Variant:
    """The keys under which a family gives its experts, and what else is its own.

    ``dense_layers`` says that some layers may be dense: those in ``mlp_only_layers`` and those between every
    ``decoder_sparse_step``-th.
    """

    experts: str
    expert_size: str
    qkv_bias: str | bool = False
    output_bias: str | bool = False
    qk_norm: QkNorm | None = None
    shared_expert: bool = False
    dense_layers: bool = False


def chosen_experts(config: Settings, experts: str) -> tuple[int, int]:
    """How many experts there are and how many each token uses.

    Raises:
        UsageError: where a token would use more than there are.
    """
    there, used = config.size(experts), config.size("num_experts_per_tok")
    if used > there:
        raise UsageError(
            f"{config.where}: 'num_experts_per_tok' ({used}) is more than {experts!r} ({there}): use fewer"
        )
    return there, used


def _sparse_layers(config: Settings, variant: Variant, layers: int) -> tuple[bool, ...]:
    """Which layers have experts."""
    if not variant.dense_layers:
        return (True,) * layers
    dense, step = config.indices("mlp_only_layers") or (), config.size("decoder_sparse_step")
    return tuple(index not in dense and (index + 1) % step == 0 for index in range(layers))


def _layer_types(config: Settings, model_type: str, layers: int) -> tuple[str, ...]:
    given = config.layer_types(layers, LAYER_TYPES)
    if given:
        return given
    if not config.has("sliding_window") or (
        model_type.startswith("qwen") and not config.flag("use_sliding_window")
    ):
        return (FULL,) * layers
    if model_type == "qwen2_moe":
        below = config.count("max_window_layers")
        return tuple(SLIDING if index % 2 == 0 and index < below else FULL for index in range(layers))
    return (SLIDING,) * layers


def _feed_forward(config: Settings, variant: Variant, sizes: Sizes, sparse: int) -> Tensors:
    """Router, experts and shared expert of the sparse layers, the plain MLP of the others."""
    name, hidden = "model.layers.*.mlp", sizes.hidden
    shared: Tensors = ()
    if variant.shared_expert:
        shared = (
            *gated_mlp(
                f"{name}.shared_expert", hidden, config.size("shared_expert_intermediate_size"), count=sparse
            ),
            *linear(f"{name}.shared_expert_gate", hidden, 1, count=sparse),
        )
    dense = sizes.layers - sparse
    experts = config.size(variant.experts)
    return (
        *(gated_mlp(name, hidden, config.size("intermediate_size"), count=dense) if dense else ()),
        *(
            (
                Tensor(f"{name}.gate.weight", (experts, hidden), "other", sparse),
                *gated_experts(
                    f"{name}.experts", experts, hidden, config.size(variant.expert_size), count=sparse
                ),
                *shared,
            )
            if sparse
            else ()
        ),
    )


def _read(model_type: str, variant: Variant, config: Settings) -> Architecture:
    sizes = Sizes.of(config)
    experts, used = chosen_experts(config, variant.experts)
    activation = config.text("hidden_act")
    sparse_mlp = Mlp(
        config.size(variant.expert_size),
        gated=True,
        activation=activation,
        experts=experts,
        experts_per_token=used,
        shared_intermediate=config.size("shared_expert_intermediate_size") if variant.shared_expert else 0,
    )
    dense_mlp = Mlp(config.size("intermediate_size"), gated=True, activation=activation)
    sparse = _sparse_layers(config, variant, sizes.layers)
    types = _layer_types(config, model_type, sizes.layers)
    layers = tuple(
        Layer(attention, sparse_mlp if has_experts else dense_mlp, "rmsnorm")
        for attention, has_experts in zip(
            attentions(config, sizes, types, qk_norm=variant.qk_norm is not None), sparse, strict=True
        )
    )
    blocks = (
        *attention_tensors(
            sizes,
            qkv_bias=config.switch(variant.qkv_bias),
            output_bias=config.switch(variant.output_bias),
            qk_norm=variant.qk_norm,
        ),
        *_feed_forward(config, variant, sizes, sum(sparse)),
        *block_norms(sizes, "input_layernorm", "post_attention_layernorm"),
    )
    return assemble(config, model_type, sizes, layers, blocks)


_MIXTRAL: dict[str, Any] = {
    **DEFAULTS,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "head_dim": None,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
}
_QWEN: dict[str, Any] = {
    **DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "mlp_only_layers": None,
}
_QWEN2: dict[str, Any] = {
    **_QWEN,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_window_layers": 28,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4,
    "num_experts": 60,
    "qkv_bias": True,
    "layer_types": None,
}
_QWEN3: dict[str, Any] = {
    **_QWEN,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": None,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_local_experts": 128,
    "attention_bias": False,
}
_OLMOE: dict[str, Any] = {
    **DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "clip_qkv": None,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.01,
    "norm_topk_prob": False,
}

_VARIANTS: tuple[tuple[str, Variant, dict[str, Any], dict[str, str]], ...] = (
    (
        "mixtral",
        Variant("num_local_experts", "intermediate_size"),
        _MIXTRAL,
        {"num_experts": "num_local_experts"},
    ),
    (
        "qwen2_moe",
        Variant("num_experts", "moe_intermediate_size", "qkv_bias", shared_expert=True, dense_layers=True),
        _QWEN2,
        {},
    ),
    (
        "qwen3_moe",
        Variant(
            "num_local_experts",
            "moe_intermediate_size",
            "attention_bias",
            "attention_bias",
            "head",
            dense_layers=True,
        ),
        _QWEN3,
        {"num_experts": "num_local_experts"},
    ),
    (
        "olmoe",
        Variant("num_experts", "intermediate_size", "attention_bias", "attention_bias", "projection"),
        _OLMOE,
        {"num_local_experts": "num_experts"},
    ),
)

FAMILIES = tuple(
    Family(model_type, defaults, partial(_read, model_type, variant), aliases)
    for model_type, variant, defaults, aliases in _VARIANTS
)
