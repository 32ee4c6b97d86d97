"""What adapters take: by formula, traced, and measured."""

from __future__ import annotations

from typing import Any

import pytest

from mem_gpt_cli.adapters.apply import adapter_tensors
from mem_gpt_cli.adapters.cost import adapted, factor_bytes
from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.estimate.parameters import trainable_bytes
from mem_gpt_cli.model import resolve
from mem_gpt_cli.model.facts import trainable
from mem_gpt_cli.profile import profile
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.trace import trace
from mem_gpt_cli.workload.build import build_on_meta

ALLOWED = {"bitsandbytes": 200, "torch": 10_000}
"""The part of what is measured that a trace may be off by."""

GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 32, "n_positions": 64}
LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "vocab_size": 32,
}
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "tinyllama-1.1b": LLAMA,
    "qwen3-0.6b": {"num_hidden_layers": 2},
    "mixtral-8x7b": {"num_hidden_layers": 2},
    "opt-125m": {"num_hidden_layers": 2},
    "phi-2": {"num_hidden_layers": 2},
    "gemma-3-1b": {"num_hidden_layers": 2},
    "deepseek-v3": {"num_hidden_layers": 4},
    "falcon-7b": {"num_hidden_layers": 2},
}


def recipe_of(
    model: str,
    scheme: str = "none",
    *,
    dtype: str = "fp32",
    task: str = "training",
    adapters: dict[str, Any] | None = None,
    **sections: Any,
) -> Recipe:
    sizes = {"seq": 48} if task == "training" else {"prompt_tokens": 40, "new_tokens": 5}
    workload = {"batch": 2, **sizes, **sections.pop("workload", {})}
    quantization = {} if scheme == "none" else {"scheme": scheme}
    return Recipe.model_validate(
        {
            "model": {"name": model, "config": SMALL[model], "dtype": dtype, "weights": "random"},
            "task": task,
            "workload": workload,
            "device": {"name": "cpu", "threads": 1},
            "quantization": quantization,
            "adapters": {"kind": "lora" if scheme == "none" else "qlora", **(adapters or {})},
            **sections,
        }
    )


@pytest.mark.parametrize(
    "adapters", [{}, {"rank": 3}, {"targets": ["o_proj", "dense", "out_proj", "c_proj"]}]
)
@pytest.mark.parametrize("model", SMALL)
def test_one_list_says_what_is_trained(model: str, adapters: dict[str, Any]) -> None:
    """The formula's list is the model's, tensor by tensor and in its order."""
    source = resolve(recipe_of(model).model)
    own = {module.rpartition(".")[2] for module, *_ in adapted(source.architecture, recipe_of(model))}
    if "targets" in adapters:
        adapters = {"targets": [target for target in adapters["targets"] if target in own]}
    recipe = recipe_of(model, adapters=adapters)
    meta = build_on_meta(source, recipe)
    assert trainable_bytes(source.architecture, recipe) == [p.nbytes for p in trainable(meta).values()]
    assert factor_bytes(source.architecture, recipe) == [t.nbytes for t in adapter_tensors(meta)]
    assert len(trainable(meta)) >= 4


@pytest.mark.parametrize("model", SMALL)
def test_all_matrices_of_the_layers_are_meant_by_default(model: str) -> None:
    """Both sides name the same modules, the head and stacked experts left out."""
    source, recipe = resolve(recipe_of(model).model), recipe_of(model)
    meta = build_on_meta(source, recipe)
    modules = [one.module for one in adapted(source.architecture, recipe)]
    named = [path for path, module in meta.named_modules() if hasattr(module, "lora_A")]
    assert sorted(modules) == sorted(named)
    assert "lm_head" not in modules


def test_the_formula_refuses_a_target_as_the_model_does() -> None:
    recipe = recipe_of("gpt2", adapters={"targets": ["q_proj"]})
    with pytest.raises(RecipeError, match="names no matrix of gpt2"):
        estimate(recipe)


CELLS: dict[str, Recipe] = {
    "gpt2 lora": recipe_of("gpt2", adapters={"dropout": 0.1}),
    "gpt2 nf4 recomputed": recipe_of("gpt2", "nf4", checkpointing={"policy": "full"}),
    "gpt2 int8": recipe_of("gpt2", "int8", dtype="bf16"),
    "llama head bf16": recipe_of(
        "tinyllama-1.1b", dtype="bf16", adapters={"targets": ["lm_head", "q_proj", "down_proj"]}
    ),
    "llama nf4": recipe_of("tinyllama-1.1b", "nf4", workload={"accumulate": 2}),
    "llama int4 recomputed": recipe_of("tinyllama-1.1b", "int4", checkpointing={"policy": "full"}),
    "llama lora autocast": recipe_of("tinyllama-1.1b", workload={"autocast": "bf16"}),
    "llama generates": recipe_of("tinyllama-1.1b", "nf4", task="inference"),
}


@pytest.mark.parametrize("cell", CELLS)
def test_trace_is_what_is_measured_and_the_formula_close(cell: str) -> None:
    recipe = CELLS[cell]
    traced, found = trace(recipe), estimate(recipe)
    library = "bitsandbytes" if recipe.quantization.scheme in ("nf4", "int8") else "torch"
    for dry, real, paper in zip(
        traced.phases, profile(recipe, passes="memory").phases, found.phases, strict=True
    ):
        off = abs(dry.peak_allocated_bytes - real.peak_allocated_bytes)
        assert off <= max(4096, real.peak_allocated_bytes // ALLOWED[library]), dry.name
        assert paper.peak_allocated_bytes == pytest.approx(dry.peak_allocated_bytes, rel=0.01), dry.name
    last = traced.phases[-1].components
    assert last["adapters"] == found.phases[-1].components["adapters"] > 0
    if recipe.task == "training":
        assert last["gradients"] == sum(trainable_bytes(resolve(recipe.model).architecture, recipe))


@pytest.mark.parametrize(
    ("model", "scheme"),
    [("gpt2", "none"), ("tinyllama-1.1b", "nf4"), ("gpt2", "int8"), ("tinyllama-1.1b", "int4")],
)
def test_the_formula_is_the_trace_on_a_card(model: str, scheme: str) -> None:
    recipe = recipe_of(
        model,
        scheme,
        dtype="bf16",
        device={"name": "h100"},
        checkpointing={"policy": "full"},
        workload={"batch": 4, "seq": 64},
    )
    for paper, dry in zip(estimate(recipe).phases, trace(recipe).phases, strict=True):
        assert paper.peak_allocated_bytes == pytest.approx(dry.peak_allocated_bytes, rel=0.01), dry.name


def test_layers_are_told_from_few_unless_a_target_is_one_layers_alone() -> None:
    deep = {"num_hidden_layers": 8}
    for targets, run in ((None, [3, 4]), (["model.layers.5.self_attn.q_proj", "v_proj"], [8])):
        recipe = recipe_of("tinyllama-1.1b", adapters={"targets": targets})
        deeper = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"config": {**LLAMA, **deep}})}
        )
        found = trace(deeper)
        assert found.details["layers_run"] == run
        whole = trace(deeper, full_depth=True) if run != [8] else found  # else the very same run again
        assert [p.peak_allocated_bytes for p in found.phases] == [
            p.peak_allocated_bytes for p in whole.phases
        ]
