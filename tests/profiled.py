"""Small models that are run for real in tests, one thread each."""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.recipe.schema import Recipe

GPT2: dict[str, Any] = {
    "name": "gpt2",
    "config": {"n_layer": 3, "n_embd": 64, "n_head": 4, "vocab_size": 500, "n_positions": 256},
}
LLAMA: dict[str, Any] = {
    "name": "tinyllama-1.1b",
    "config": {
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 160,
        "vocab_size": 500,
    },
}
MODELS = {"gpt2": GPT2, "llama": LLAMA}
INFERENCE = {"batch": 2, "prompt_tokens": 96, "new_tokens": 5}
TRAINING = {"batch": 2, "seq": 64}


def small_recipe(model: dict[str, Any], task: str, **sections: Any) -> Recipe:
    """A recipe that runs in a second."""
    data: dict[str, Any] = {
        "model": model,
        "task": task,
        "workload": INFERENCE if task == "inference" else TRAINING,
        "device": {"name": "cpu", "threads": 1},
    }
    return Recipe.model_validate({**data, **sections})
