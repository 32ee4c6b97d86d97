"""A dispatch mode could change what autograd does (add gradients in place, or not): memory stays the same.

The allocator's account of a run that nothing watches is compared with the same run under the ledger, whose
events explain a profile, and with the trace.
"""

from __future__ import annotations

import pytest
import torch

from mem_gpt_cli.ledger import Ledger
from mem_gpt_cli.ledger.allocator import record_allocator
from mem_gpt_cli.model import resolve
from mem_gpt_cli.recipe import Recipe, load_recipe
from mem_gpt_cli.trace import trace
from mem_gpt_cli.workload import Unobserved, workload_of
from mem_gpt_cli.workload.build import build

GPT2 = ["model.name=gpt2", "model.config={n_layer: 2, n_embd: 96, n_head: 4, vocab_size: 3000}"]
LLAMA = [
    "model.name=llama-3.2-1b",
    "model.config={num_hidden_layers: 2, hidden_size: 96, intermediate_size: 128, num_attention_heads: 4, "
    "head_dim: 24, num_key_value_heads: 2, vocab_size: 3000}",
]
CELLS = {
    "tied gradients add up": [*GPT2, "task=training", "workload.seq=24"],
    "checkpointed, wide residuals": [
        *LLAMA,
        "model.config.vocab_size=50",
        "task=training",
        "workload.seq=256",
        "workload.batch=4",
        "checkpointing.policy=full",
    ],
    "tied embeddings of a wide vocabulary, recomputed layers under autocast": [
        *GPT2,
        "model.config.vocab_size=20000",
        "task=training",
        "workload.seq=32",
        "workload.autocast=bf16",
        "checkpointing.policy=full",
        "optimizer.implementation=fused",
    ],
    "the same under autocast, every second layer recomputed": [
        *GPT2,
        "task=training",
        "workload.seq=24",
        "workload.autocast=bf16",
        "checkpointing.policy=every_n",
    ],
    "kept results under autocast, accumulated": [
        *GPT2,
        "model.dropout=0",
        "task=training",
        "workload.seq=96",
        "workload.accumulate=2",
        "workload.autocast=bf16",
        "checkpointing.policy=selective",
    ],
    "kept results, plain attention": [
        *LLAMA,
        "task=training",
        "workload.seq=128",
        "workload.batch=2",
        "attention.backend=eager",
        "workload.hold_outputs=true",
        "checkpointing.policy=selective",
    ],
    "generation": [*LLAMA, "workload.seq=96", "workload.new_tokens=6"],
}


def allocator_peak(recipe: Recipe, ledger: Ledger | None) -> int:
    """The allocator's peak over building and running, under a ledger or unwatched."""
    source = resolve(recipe.model)

    def run() -> None:
        workload, observer = workload_of(recipe), ledger or Unobserved()
        model = build(source, recipe)
        workload.prepare(model, observer)
        tokens = torch.zeros(recipe.workload.batch, workload.lengths.prompt, dtype=torch.long)
        workload.run(model, tokens, observer)

    with record_allocator() as record:
        if ledger is None:
            run()
        else:
            with ledger:
                run()
    live = peak = 0
    for event in record.events:
        live += event.nbytes
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("overrides", CELLS.values(), ids=CELLS.keys())
def test_watching_changes_nothing(overrides: list[str]) -> None:
    recipe = load_recipe(None, overrides=overrides)
    unwatched = allocator_peak(recipe, None)
    watched = allocator_peak(recipe, Ledger())
    assert abs(watched - unwatched) <= 64
    assert abs(trace(recipe).allocated_bytes - unwatched) <= max(4096, unwatched // 10_000)
