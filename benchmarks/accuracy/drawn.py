"""Cells that nobody chose: shapes, lengths and options drawn from a seeded generator."""

from __future__ import annotations

from random import Random
from typing import Any

from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.recipe import Recipe, expand

VOCABULARY = (500, 3001)
LENGTH = (5, 700)


def drawn_recipe(count: int, seed: int, options: str = "all") -> Recipe:
    """A recipe whose sweep has ``count`` cells, the same for the same seed.

    Args:
        count: how many.
        seed: of the generator.
        options: ``training`` draws fine-tunes, with the method, optimizer, loss and checkpointing of each;
            combinations that are refused are drawn again.
    """
    random = Random(seed)
    draw = _fine_tune if options == "training" else _cell
    return Recipe.model_validate({"sweep": {"cells": [draw(random) for _ in range(count)]}})


def _fine_tune(random: Random) -> dict[str, Any]:
    while True:
        cell = _cell(random, "training") | _method(random)
        try:
            (one,) = expand(Recipe.model_validate({"sweep": {"cells": [cell]}}))
            estimate(one.recipe)
        except MemgptError:
            continue
        return cell


def _method(random: Random) -> dict[str, Any]:
    """How a model is fine-tuned: keys that have a meaning beside one another."""
    kind = random.choice(["none", "lora", "qlora"])
    cell: dict[str, Any] = {
        "workload.seq": random.randint(5, 200),
        "workload.batch": random.randint(1, 3),
        "workload.accumulate": random.choice([1, 1, 2, 3]),
        "workload.clip_norm": random.choice([None, 1.0]),
        "adapters.kind": kind,
        "checkpointing.policy": random.choice(["none", "full", "every_n", "selective"]),
        "optimizer.name": random.choice(["adamw", "adamw_8bit", "lion_8bit", "adafactor", "sgd", "galore"]),
        "optimizer.implementation": "auto",
        "loss.kind": random.choice(["full", "chunked", "fused"]),
    }
    if kind != "none":
        cell |= {"adapters.rank": random.randint(1, 24), "adapters.dropout": random.choice([None, 0.1])}
    if kind == "qlora":
        cell["quantization.scheme"] = random.choice(["nf4", "int8"])
    if cell["checkpointing.policy"] == "selective":
        cell["checkpointing.keep"] = random.choice([["attention"], ["products"], None])
    if cell["checkpointing.policy"] == "every_n":
        cell["checkpointing.every"] = random.randint(1, 4)
    if cell["loss.kind"] == "chunked":
        cell["loss.chunk"] = random.randint(7, 300)
    if cell["optimizer.name"] in ("adamw", "sgd"):
        cell["optimizer.implementation"] = random.choice(["loop", "foreach", "fused"])
    if cell["optimizer.name"] == "sgd":
        cell["optimizer.momentum"] = random.choice([None, 0.9])
    if cell["optimizer.name"] == "galore":
        cell |= {"optimizer.rank": random.randint(2, 40), "optimizer.bits": random.choice([8, 32])}
    return cell


def _cell(random: Random, task: str | None = None) -> dict[str, Any]:
    name = random.choice(list(SHAPES))
    task = task or random.choice(["inference", "training"])
    cell: dict[str, Any] = {
        "model.name": name,
        "model.weights": "random",
        "model.config": SHAPES[name](random) | {"vocab_size": random.randint(*VOCABULARY)},
        "model.dtype": random.choice(["fp32", "fp32", "bf16"]),
        "model.dropout": random.choice([None, 0.0, 0.1]),
        "task": task,
        "workload.batch": random.randint(1, 5),
        "attention.backend": random.choice(["sdpa", "eager"]),
        "device.threads": random.choice([1, 2]),
    }
    return cell | (_training(random) if task == "training" else _inference(random))


def _training(random: Random) -> dict[str, Any]:
    return {
        "workload.seq": random.randint(*LENGTH),
        "workload.autocast": random.choice(["none", "none", "bf16"]),
        "workload.hold_outputs": random.choice([False, True]),
        "checkpointing.policy": random.choice(["none", "full"]),
        "optimizer.implementation": random.choice(["loop", "foreach", "fused"]),
    }


def _inference(random: Random) -> dict[str, Any]:
    return {
        "workload.prompt_tokens": random.randint(*LENGTH),
        "workload.new_tokens": random.randint(1, 12),
        "workload.autocast": random.choice(["none", "none", "bf16"]),
        "workload.logits": random.choice(["last", "all"]),
        "kv_cache.kind": random.choice(["dynamic", "dynamic", "none"]),
    }


def _gpt2(random: Random) -> dict[str, Any]:
    heads = random.randint(1, 6)
    return {"n_layer": random.randint(1, 8), "n_head": heads, "n_embd": heads * random.randint(7, 50)}


def _opt(random: Random) -> dict[str, Any]:
    heads = random.randint(1, 6)
    width = heads * random.randint(7, 50)
    return {
        "num_hidden_layers": random.randint(1, 8),
        "num_attention_heads": heads,
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "ffn_dim": random.randint(50, 600),
    }


def _llama(random: Random) -> dict[str, Any]:
    """Rotary halves make head sizes even; a multiple of four bytes in a row suits every grouped product."""
    shared = random.randint(1, 3)
    kv_heads = random.randint(1, 3)
    heads = shared * kv_heads
    return {
        "num_hidden_layers": random.randint(1, 8),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * 2 * random.randint(4, 25),
        "intermediate_size": random.randint(50, 600),
    }


def _explicit_heads(random: Random) -> dict[str, Any]:
    """Heads of a size of their own; the width is a multiple of their number all the same."""
    shape = _llama(random)
    heads = shape["num_attention_heads"]
    width = heads * -(-random.randint(40, 200) // heads)
    return shape | {"hidden_size": width, "head_dim": 2 * random.randint(4, 40)}


def _windowed(random: Random) -> dict[str, Any]:
    return {"sliding_window": random.randint(16, 300)}


def _mixtral(random: Random) -> dict[str, Any]:
    """Rows of the experts' matrices lie a multiple of 16 bytes apart, which their grouped product demands."""
    heads = random.randint(1, 4)
    experts = random.randint(2, 6)
    return {
        "num_hidden_layers": random.randint(1, 6),
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "hidden_size": heads * 8 * random.randint(2, 6),
        "intermediate_size": 8 * random.randint(6, 40),
        "num_local_experts": experts,
        "num_experts_per_tok": random.randint(1, 2),
    }


def _deepseek(random: Random) -> dict[str, Any]:
    heads = random.randint(1, 5)
    return {
        "num_hidden_layers": random.randint(2, 7),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "hidden_size": 8 * random.randint(6, 20),
        "q_lora_rank": random.randint(10, 60),
        "kv_lora_rank": random.randint(10, 60),
        "qk_nope_head_dim": random.randint(6, 40),
        "qk_rope_head_dim": 2 * random.randint(3, 16),
        "v_head_dim": random.randint(6, 50),
        "intermediate_size": random.randint(50, 500),
        "moe_intermediate_size": 8 * random.randint(4, 16),
        "n_routed_experts": 2 * random.randint(2, 5),
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": random.randint(0, 2),
    }


SHAPES = {
    "gpt2": _gpt2,
    "opt-125m": _opt,
    "llama-7b": _llama,
    "qwen3-0.6b": _explicit_heads,
    "gemma-3-1b": lambda random: _explicit_heads(random) | _windowed(random),
    "mistral-7b-v0.1": lambda random: _llama(random) | _windowed(random),
    "mixtral-8x7b": _mixtral,
    "deepseek-v3": _deepseek,
}
