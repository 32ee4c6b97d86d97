"""An ``Architecture`` against transformers' model of its config: names, shapes, kinds, bytes, windows."""

from __future__ import annotations

from typing import Any

import pytest
from real_models import assert_same
from transformers import CONFIG_MAPPING

from mem_gpt_cli.model import Entry, catalogue
from mem_gpt_cli.model.families import MODEL_TYPES, find_family
from mem_gpt_cli.model.replacements import replace

DEEPEST = 8
"""Layers that every pattern of the catalogue shows itself in: Gemma 3 alternates with a period of 6."""


def cut(entry: Entry) -> dict[str, Any]:
    """The entry's config, no deeper than its patterns of layers need, so that it is built fast."""
    family = find_family(entry.config["model_type"])
    assert family is not None
    key = family.aliases.get("num_hidden_layers", "num_hidden_layers")
    layers = min(entry.config.get(key, family.defaults[key]), DEEPEST)
    return replace(entry.config, {key: layers}, entry.name)


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_every_catalogue_entry_is_its_transformers_model(entry: Entry) -> None:
    assert_same(cut(entry))


@pytest.mark.parametrize("name", ["gpt2-xl", "opt-350m", "llama-3.1-70b", "gemma-3-27b", "deepseek-v3"])
def test_at_full_depth_too(name: str) -> None:
    """All entries were compared at full depth when the catalogue was made: `python tests/real_models.py`."""
    assert_same(next(entry.config for entry in catalogue() if entry.name == name))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_a_config_leaves_out_is_what_transformers_takes(model_type: str) -> None:
    # DeepSeek-V2's class leaves the experts of a token open, and no model can be built without them.
    required = {"num_experts_per_tok": 6} if model_type == "deepseek_v2" else {}
    assert_same(cut(Entry(model_type, "", "", {"model_type": model_type, **required}, "")))


COMPUTED = {
    ("gpt_neo", "attention_types"): "filled in by __post_init__",
    (
        "opt",
        "word_embed_proj_dim",
    ): "768 in the class, but null stands for the hidden size, which is the safer reading",
}
OUTSIDE = {
    *("partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rope_local_base_freq"),
    *("sliding_window_pattern", "head_dim", "mlp_bias"),
}
"""Keys of hub configs that the classes read from their keyword arguments, without a field."""

NEWER = {"output_router_logits", "swiglu_limit", "swiglu_alpha"}
"""Keys that later versions than transformers 5.17 made fields of more classes."""


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_defaults_are_those_of_the_config_class(model_type: str) -> None:
    family = find_family(model_type)
    assert family is not None
    fields = CONFIG_MAPPING[model_type].__dataclass_fields__
    for key, own in family.defaults.items():
        if key in OUTSIDE or (model_type, key) in COMPUTED:
            continue
        spellings = [key, *(alias for alias, target in family.aliases.items() if target == key)]
        found = [fields[name].default for name in spellings if name in fields]
        assert found[:1] == [own] or (key in NEWER and not found), key
    for alias, key in CONFIG_MAPPING[model_type].attribute_map.items():
        assert key not in family.defaults or family.aliases[alias] == key


SMALL = {"vocab_size": 96, "num_hidden_layers": 4}
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gpt2", {"n_inner": 100, "tie_word_embeddings": False}),
    ("gpt2", {"num_attention_heads": 8, "hidden_size": 64, "max_position_embeddings": 33}),
    ("gpt_bigcode", {"multi_query": False}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32, "hidden_size": 48}),
    ("opt", {"layer_norm_elementwise_affine": False, "enable_bias": False, "tie_word_embeddings": False}),
    ("bloom", {"tie_word_embeddings": False}),
    ("mpt", {"tie_word_embeddings": False}),
    ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    (
        "falcon",
        {"new_decoder_architecture": True, "num_attention_heads": 64, "num_kv_heads": 8, "hidden_size": 256},
    ),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
    ("gptj", {"n_inner": 64, "tie_word_embeddings": True}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0}),
    (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5}},
    ),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4, "head_dim": 16}),
    ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": 1, "attention_bias": True}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 64}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 64, "no_rope_layers": [1, 0, 0, 1]}),
    ("granite", {"mlp_bias": True, "attention_bias": True}),
    ("ernie4_5", {"use_bias": True}),
    ("exaone4", {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    ("olmo3", {"layer_types": ["full_attention"] * 4}),
    ("gemma", {"attention_bias": True}),
    ("gemma2", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}),
    ("gemma3_text", {"sliding_window_pattern": 2, "sliding_window": 8, "final_logit_softcapping": 30.0}),
    ("gemma3_text", {"layer_types": ["full_attention"] * 4}),
    ("gpt_neo", {"hidden_size": 64, "num_attention_heads": 4}),
    ("phi", {"qk_layernorm": True, "num_key_value_heads": 8, "partial_rotary_factor": 0.25}),
    ("phi3", {"sliding_window": 128, "partial_rotary_factor": 0.75}),
    ("stablelm", {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}),
    ("starcoder2", {"use_bias": False, "sliding_window": 32, "tie_word_embeddings": False}),
    ("cohere", {"use_qk_norm": True, "num_key_value_heads": 8, "attention_bias": True}),
    ("cohere2", {"sliding_window_pattern": 2, "sliding_window": 16}),
    ("mixtral", {"sliding_window": 64, "num_experts": 3, "head_dim": 32}),
    ("qwen2_moe", {"qkv_bias": False, "mlp_only_layers": [0], "decoder_sparse_step": 2}),
    ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 3}),
    ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3], "use_sliding_window": True, "attention_bias": True}),
    ("olmoe", {"attention_bias": True, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("llama4_text", {"moe_layers": [1, 2], "no_rope_layers": [0, 1, 1, 0], "attention_chunk_size": 32}),
    ("llama4_text", {"interleave_moe_layer_step": 4, "attention_bias": True}),
    ("deepseek_v2", {"q_lora_rank": None, "attention_bias": True, "num_experts_per_tok": 2}),
    ("deepseek_v3", {"first_k_dense_replace": 9, "n_shared_experts": 2}),
    ("gpt_oss", {"attention_bias": False, "num_experts": 4, "sliding_window": 16}),
)


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=[f"{t}-{'-'.join(c)}" for t, c in VARIANTS])
def test_every_switch_of_a_family(model_type: str, changes: dict[str, Any]) -> None:
    config = replace({"model_type": model_type}, {**SMALL, **changes}, "the test's config")
    assert_same(config)
