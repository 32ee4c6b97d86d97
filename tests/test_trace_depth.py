"""Two shallow runs say what the whole model does, to the byte."""

from __future__ import annotations

import pytest

from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.report import MemoryReport
from mem_gpt_cli.trace import trace
from mem_gpt_cli.trace.depth import pattern

SMALL_GPT2 = ["model.name=gpt2", "model.config={n_embd: 64, n_head: 4, vocab_size: 500, n_layer: 8}"]
SMALL_LLAMA = [
    "model.name=llama-3.2-1b",
    "model.config={hidden_size: 64, intermediate_size: 96, num_attention_heads: 4, num_key_value_heads: 2, "
    "head_dim: 16, vocab_size: 500, num_hidden_layers: 8}",
]
SMALL_GEMMA3 = [
    "model.name=gemma-3-1b",
    "model.config={hidden_size: 64, intermediate_size: 96, num_attention_heads: 4, num_key_value_heads: 1, "
    "head_dim: 16, vocab_size: 500, sliding_window: 64}",
]
SMALL_DEEPSEEK = [
    "model.name=deepseek-v3",
    "model.config={hidden_size: 64, intermediate_size: 96, moe_intermediate_size: 32, "
    "num_attention_heads: 4, num_key_value_heads: 4, q_lora_rank: 32, kv_lora_rank: 16, "
    "qk_rope_head_dim: 8, qk_nope_head_dim: 8, v_head_dim: 16, n_routed_experts: 4, n_group: 2, "
    "topk_group: 1, num_experts_per_tok: 2, vocab_size: 500, first_k_dense_replace: 1, num_hidden_layers: 8}",
]
SMALL_MISTRAL = [
    "model.name=mistral-7b-v0.1",
    "model.config={hidden_size: 64, intermediate_size: 96, num_attention_heads: 4, num_key_value_heads: 2, "
    "vocab_size: 500, num_hidden_layers: 6, sliding_window: 48}",
]
TRAINING = ["task=training", "workload.seq=96"]
INFERENCE = ["workload.seq=160", "workload.new_tokens=5"]

CELLS = {
    "gpt2 training, foreach": [*SMALL_GPT2, *TRAINING, "optimizer.implementation=foreach"],
    "gpt2 training, checkpointing, fused": [
        *SMALL_GPT2,
        *TRAINING,
        "checkpointing.policy=full",
        "optimizer.implementation=fused",
        "workload.hold_outputs=true",
    ],
    "gpt2 training, autocast": [*SMALL_GPT2, *TRAINING, "workload.autocast=bf16", "workload.batch=2"],
    "gpt2 inference, no cache": [*SMALL_GPT2, *INFERENCE, "kv_cache.kind=none"],
    "llama inference": [*SMALL_LLAMA, *INFERENCE],
    "gemma3 training, windows and every fourth layer recomputed": [
        *SMALL_GEMMA3,
        *TRAINING,
        "model.config.sliding_window_pattern=2",
        "model.config.num_hidden_layers=25",
        "checkpointing.policy=every_n",
        "checkpointing.every=4",
    ],
    "llama training, kept results": [*SMALL_LLAMA, *TRAINING, "checkpointing.policy=selective"],
    "llama training, eager, bf16, checkpointing": [
        *SMALL_LLAMA,
        *TRAINING,
        "attention.backend=eager",
        "model.dtype=bf16",
        "checkpointing.policy=full",
    ],
    "gemma3 inference, two windows to one": [
        *SMALL_GEMMA3,
        *INFERENCE,
        "model.config.sliding_window_pattern=3",
        "model.config.num_hidden_layers=19",
    ],
    "deepseek inference, one dense layer first": [*SMALL_DEEPSEEK, *INFERENCE],
    "mistral inference beyond its window": [*SMALL_MISTRAL, *INFERENCE],
}
"""As many layers as make two shallow runs the cheaper way; where kinds alternate, with some left over."""


def both_depths(overrides: list[str]) -> tuple[MemoryReport, MemoryReport]:
    recipe = load_recipe(None, overrides=overrides)
    return trace(recipe), trace(recipe, full_depth=True)


@pytest.mark.parametrize("overrides", CELLS.values(), ids=CELLS.keys())
def test_extrapolation_equals_the_whole_run(overrides: list[str]) -> None:
    shallow, whole = both_depths(overrides)
    assert len(shallow.details["layers_run"]) == 2, shallow.warnings
    assert sum(shallow.details["layers_run"]) < whole.model.layers
    for short, full in zip(shallow.phases, whole.phases, strict=True):
        assert short.name == full.name
        assert short.peak_allocated_bytes == full.peak_allocated_bytes
        assert dict(short.components) == dict(full.components)


def test_a_shallow_model_is_run_whole() -> None:
    report = trace(load_recipe(None, overrides=[*SMALL_GPT2, "model.config.n_layer=4", *TRAINING]))
    assert report.details["layers_run"] == [4]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("aaaaaaaa", (0, 1)),
        ("abbbbbbb", (1, 1)),
        ("abababab", (0, 2)),
        ("aaaaabaaaaabaa", (0, 6)),
        ("ddmmmmmmm", (2, 1)),
        ("abcdefgh", (0, 8)),
    ],
)
def test_pattern(kinds: str, expected: tuple[int, int]) -> None:
    assert pattern(list(kinds)) == expected


@pytest.mark.parametrize(
    ("implementation", "mebibytes"), [("fused", 23_964), ("loop", 24_578), ("foreach", 29_906)]
)
def test_the_optimizer_step_of_gpt2_xl(implementation: str, mebibytes: int) -> None:
    """Peaks of a checkpointed fp32 training step whose logits are kept, as a CUDA allocator counts them.

    CUDA rounds every tensor up to 512 bytes, which on the 2,400 tensors here is under a mebibyte.
    """
    report = trace(
        load_recipe(
            None,
            overrides=[
                "model.name=gpt2-xl",
                "workload.seq=1024",
                "task=training",
                "checkpointing.policy=full",
                "workload.hold_outputs=true",
                f"optimizer.implementation={implementation}",
            ],
        )
    )
    step = report.phase("optimizer_step")
    assert step is not None
    assert abs(step.peak_allocated_bytes - mebibytes * 2**20) <= 2**20
