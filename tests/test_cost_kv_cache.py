"""The cache's cost against the caches that transformers' models really build."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mem_gpt_cli.kv_cache import cost
from mem_gpt_cli.kv_cache.storage import cache_tensors
from mem_gpt_cli.model import resolve
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.workload.build import build

SMALL = "hidden_size=64 num_hidden_layers=3 num_attention_heads=4 vocab_size=300 intermediate_size=96"
MODELS = {
    "multi-head": "gpt2 n_embd=64 n_layer=3 n_head=4 vocab_size=300",
    "grouped-query": f"llama-2-7b {SMALL} num_key_value_heads=2",
    "multi-query": f"llama-2-7b {SMALL} num_key_value_heads=1",
    "wide heads": f"qwen3-0.6b {SMALL} num_key_value_heads=2 head_dim=32",
    "sliding window": f"mistral-7b-v0.1 {SMALL} num_key_value_heads=2 sliding_window=8",
    "some sliding": f"gemma-3-270m {SMALL} num_key_value_heads=1 head_dim=16 sliding_window=8",
    "latent": f"deepseek-v2-lite {SMALL} num_key_value_heads=4 kv_lora_rank=24 qk_rope_head_dim=8 "
    "n_routed_experts=2 num_experts_per_tok=1 moe_intermediate_size=16",
}
BATCH, PROMPT, STEPS = 2, 20, 3


def storages(cache: Any) -> int:
    """Bytes of the distinct storages behind a cache's tensors."""
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in cache_tensors(cache)
    }
    return sum(found.values())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_cache_of_a_real_model(name: str, dtype: str) -> None:
    model_name, *config = MODELS[name].split()
    recipe = load_recipe(
        overrides=[
            f"model.name={model_name}",
            f"model.dtype={dtype}",
            "model.weights=random",
            *(f"model.config.{pair}" for pair in config),
        ]
    )
    source = resolve(recipe.model)
    model = build(source, recipe).eval()
    item = {"fp32": 4, "bf16": 2}[dtype]
    tokens = torch.zeros(BATCH, PROMPT, dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=tokens, use_cache=True).past_key_values
        assert storages(cache) == cost.cache_bytes(source.architecture, BATCH, PROMPT, item)
        for _ in range(STEPS):
            cache = model(input_ids=tokens[:, :1], use_cache=True, past_key_values=cache).past_key_values
    expected = cost.cache_bytes(source.architecture, BATCH, PROMPT + STEPS, item, decoded=True)
    assert storages(cache) == expected
