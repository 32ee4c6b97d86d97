"""Mixtures of experts in a trace: sizes that do not depend on data to the byte, the others between bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mem_gpt_cli.ledger import Ledger
from mem_gpt_cli.model import resolve
from mem_gpt_cli.profile import profile
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import MemoryReport
from mem_gpt_cli.trace import trace
from mem_gpt_cli.trace.contents import contents
from mem_gpt_cli.trace.faithful import like_the_real_run
from mem_gpt_cli.trace.routing import routing
from mem_gpt_cli.trace.why_not import why_not
from mem_gpt_cli.workload import workload_of
from mem_gpt_cli.workload.build import build

SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "intermediate_size": 96,
}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**SMALL, "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 48},
    "gpt_oss": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "llama4_text": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 96},
    "jetmoe": {
        **{key: value for key, value in SMALL.items() if key not in ("head_dim", "num_attention_heads")},
        "kv_channels": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "deepseek_v3": {
        **{key: value for key, value in SMALL.items() if key != "head_dim"},
        **LATENT,
        "num_key_value_heads": 4,
        "v_head_dim": 16,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 0,
    },
}
WORKLOADS: dict[str, dict[str, int]] = {
    "inference": {"batch": 2, "prompt_tokens": 16, "new_tokens": 2},
    "training": {"batch": 2, "seq": 16, "steps": 1},
}


def recipe_of(folder: Path, model_type: str, task: str, experts: str = "auto", **changes: Any) -> Recipe:
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": model_type, **MODELS[model_type], **changes}))
    # eager attention has no inner buffers, which the allocator sees and the ledger of a real run does not
    return Recipe.model_validate(
        {
            "model": {"name": str(path), "experts": experts},
            "task": task,
            "attention": {"backend": "eager"},
            "workload": WORKLOADS[task],
        }
    )


def peaks(report: MemoryReport) -> dict[str, int]:
    return {phase.name: phase.peak_allocated_bytes for phase in report.phases}


def ledger_peaks(recipe: Recipe, tokens: torch.Tensor, seed: int) -> dict[str, int]:
    """A real run's peaks by the ledger; quick enough for many seeds."""
    torch.manual_seed(seed)
    ledger, workload = Ledger(), workload_of(recipe)
    with ledger:
        with ledger.phase("load"):
            model = build(resolve(recipe.model), recipe)
            ledger.mark("weights", [*model.parameters(), *model.buffers()])
        ledger.modules.name(model)
        workload.prepare(model, ledger)
        workload.run(model, tokens, ledger)
    found: dict[str, int] = {}
    for span, moment in ledger.log.curves().peaks().items():
        found[span.phase] = max(found.get(span.phase, 0), moment.allocated_bytes)
    return found


@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        ("mixtral", "inference"),
        ("mixtral", "training"),
        ("qwen3_moe", "inference"),
        ("gpt_oss", "training"),
        ("llama4_text", "inference"),
        ("deepseek_v3", "training"),
    ],
)
def test_grouped_experts_trace_to_the_byte(tmp_path: Path, model_type: str, task: str) -> None:
    recipe = recipe_of(tmp_path, model_type, task)
    traced, measured = trace(recipe), profile(recipe, passes="memory")
    assert all(phase.lower_bytes is None for phase in traced.phases)
    # numbers that a kernel boxes as tensors of a few bytes are in the allocator's account alone
    assert peaks(traced) == pytest.approx(peaks(measured), abs=256)


@pytest.mark.parametrize(
    ("model_type", "changes", "task"),
    [
        ("mixtral", {"num_hidden_layers": 6}, "inference"),  # fewer layers run than are predicted
        ("mixtral", {}, "training"),
        ("mixtral", {"num_experts_per_tok": 1}, "training"),
        ("qwen3_moe", {}, "inference"),
        ("jetmoe", {}, "training"),  # runs every expert, the empty ones too
    ],
)
def test_real_runs_of_eager_experts_lie_between_the_bounds(
    tmp_path: Path, model_type: str, changes: dict[str, int], task: str
) -> None:
    recipe = recipe_of(tmp_path, model_type, task, "auto" if model_type == "jetmoe" else "eager", **changes)
    traced = trace(recipe)
    assert len(traced.details["layers_run"]) == (2 if "num_hidden_layers" in changes else 1)
    bounds = {phase.name: (phase.lower_bytes, phase.upper_bytes) for phase in traced.phases}
    batch, length = recipe.workload.batch, recipe.lengths.prompt
    for seed in range(3):
        tokens = torch.randint(128, (batch, length), generator=torch.Generator().manual_seed(seed))
        for name, measured in ledger_peaks(recipe, tokens, seed).items():
            lower, upper = bounds[name]
            assert lower is not None
            assert upper is not None
            assert lower <= measured <= upper, (seed, name)


def test_equal_tokens_reach_the_upper_bound(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "mixtral", "inference", "eager")
    prefill = next(phase for phase in trace(recipe).phases if phase.name == "prefill")
    tokens = torch.zeros(recipe.workload.batch, recipe.lengths.prompt, dtype=torch.long)
    assert prefill.lower_bytes is not None
    assert prefill.upper_bytes is not None
    assert prefill.lower_bytes < prefill.upper_bytes
    assert ledger_peaks(recipe, tokens, 0)["prefill"] == prefill.upper_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(24, 16, 32), (24, 16, 20), (10, 8, 8)])
def test_grouped_products_have_the_shape_that_the_kernel_gives_them(
    dtype: torch.dtype, rows: int, inner: int, columns: int
) -> None:
    def products() -> list[tuple[Any, ...]]:
        a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(4, columns, inner, dtype=dtype)
        gradient, offsets = (
            torch.ones(rows, 32, dtype=dtype),
            torch.tensor([2, 4, 6, rows], dtype=torch.int32),
        )
        found = []
        for left, right in ((a, b.transpose(1, 2)), (a.t(), gradient), (gradient.t(), a)):
            try:
                product = torch.ops.aten._grouped_mm(left, right, offsets)
            except RuntimeError:
                found.append(("refused",))
            else:
                found.append(
                    (product.shape, product.stride(), product.dtype, product.untyped_storage().nbytes())
                )
        return found

    real = products()
    with FakeTensorMode(), like_the_real_run():
        assert products() == real


def test_contents_follow_views_and_writes_and_are_given_up_where_data_comes_in() -> None:
    with FakeTensorMode(), routing("balanced") as oracle:
        counts = torch.zeros(4, dtype=torch.long)
        counts[1:3] += 5
        assert counts.tolist() == [0, 5, 5, 0]
        assert counts.nonzero().tolist() == [[1], [2]]
        assert torch.arange(6)[torch.arange(6) > 3].shape == (2,)
        view = counts.view(2, 2)
        view.copy_(torch.rand(2, 2) * 9)
        assert contents(counts) is None
        with pytest.raises(DataDependentOutputException):
            counts.tolist()
    assert not oracle.asked_in


@pytest.mark.parametrize(
    ("scenario", "tokens_of_each"),
    [("balanced", [5, 5, 5, 5]), ("concentrated", [0, 0, 10, 10]), ("spilled", [8, 10, 1, 1])],
)
def test_scenarios_choose_experts(scenario: Any, tokens_of_each: list[int]) -> None:
    with FakeTensorMode(), routing(scenario, lambda: "layers.0.mlp.router") as oracle:
        chosen = torch.rand(10, 4).topk(2).indices
        assert chosen.sort().values.diff().ne(0).all()
        assert chosen.flatten().bincount(minlength=4).tolist() == tokens_of_each
        assert oracle.asked_in == {"layers.0.mlp.router"}
        assert not oracle.certain("layers.0.mlp.experts.act_fn")
        assert oracle.certain("layers.0.mlp_norm")
        assert oracle.certain("layers.0.attention")


def test_why_not_names_who_asked() -> None:
    def asks(scores: torch.Tensor) -> torch.Tensor:
        return scores if scores.sum() > 0 else -scores

    with FakeTensorMode(), pytest.raises(DataDependentOutputException) as caught:
        asks(torch.rand(3))
    sentence = why_not(caught.value)
    assert "asks" in sentence.split(" (")[0]
    assert "test_trace_moe.py" in sentence
    assert "a trace has sizes but no data" in sentence
