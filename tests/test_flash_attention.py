"""Flash attention: the tokens are eager's, and the report says which kernel ran."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mem_gpt_cli.attention import use_flash_attention_if_available
from mem_gpt_cli.attention.backend import FLASH_ATTN, implementation, kernels_that_ran
from mem_gpt_cli.profile import profile
from mem_gpt_cli.trace import trace
from mem_gpt_cli.workload import Unobserved, workload_of
from mem_gpt_cli.workload.build import build
from tests.profiled import MODELS, small_recipe


def tokens_of(model: dict[str, Any], backend: str) -> torch.Tensor:
    """What a recipe generates from one prompt, with one set of weights."""
    from mem_gpt_cli.attention.kv_heads import source_of

    recipe = small_recipe(model, "inference", attention={"backend": backend})
    torch.manual_seed(3)
    built = build(source_of(recipe), recipe).eval()
    prompt = torch.randint(1, 500, (2, recipe.lengths.prompt), generator=torch.Generator().manual_seed(5))
    workload: Any = workload_of(recipe)
    out: torch.Tensor = workload.run(built, prompt, Unobserved())
    return out


@pytest.mark.parametrize("name", MODELS)
def test_flash_generates_the_tokens_of_eager_with_a_dynamic_cache(name: str) -> None:
    assert torch.equal(tokens_of(MODELS[name], "flash"), tokens_of(MODELS[name], "eager"))


@pytest.mark.parametrize(("backend", "kernels"), [("flash", ["sdpa flash"]), ("eager", ["eager"])])
def test_the_report_says_which_kernel_ran(backend: str, kernels: list[str]) -> None:
    workload = {"prompt_tokens": 16, "new_tokens": 2}
    recipe = small_recipe(MODELS["gpt2"], "inference", attention={"backend": backend}, workload=workload)
    assert profile(recipe, passes="memory").details["attention_kernels"] == kernels
    assert trace(recipe).details["attention_kernels"] == kernels


def test_dropout_leaves_flash_on_the_cpu() -> None:
    recipe = small_recipe(MODELS["gpt2"], "training")
    assert trace(recipe).details["attention_kernels"] == ["sdpa math"]


def test_a_gpus_trace_names_the_gpus_kernel() -> None:
    recipe = small_recipe(
        {**MODELS["gpt2"], "dtype": "bf16"}, "inference", attention={"backend": "flash"}
    ).model_copy(update={"device": small_recipe({}, "inference").device.model_copy(update={"name": "a100"})})
    assert trace(recipe).details["attention_kernels"] == ["sdpa flash"]


def test_flash_attn_runs_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from mem_gpt_cli.attention import backend

    recipe = small_recipe(MODELS["gpt2"], "inference", attention={"backend": "flash"})
    assert implementation(recipe, torch.device("cpu")) == "sdpa"
    monkeypatch.setattr(backend, "runs_flash_attn", lambda device: device.type == "cuda")
    assert implementation(recipe, torch.device("cuda")) == FLASH_ATTN
    assert implementation(recipe) == "sdpa", "a trace knows no installed package"
    assert kernels_that_ran([], FLASH_ATTN) == ["flash-attn"]


def test_a_model_of_transformers_is_set_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", **MODELS["llama"]["config"])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert use_flash_attention_if_available(model) is model
    assert model.config._attn_implementation == "sdpa"
    assert "flash attention: the flash kernel of torch's SDPA" in capsys.readouterr().err
