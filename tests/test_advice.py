"""What would lower a peak: each advice keeps its promise, and the cheapest comes first."""

from __future__ import annotations

import json
from typing import Any

import pytest
from profiled import GPT2, LLAMA, small_recipe
from typer.testing import CliRunner

from mem_gpt_cli.cli.main import app
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.estimate.advice import PRICES, WORTHWHILE, Advice, advice, changed
from mem_gpt_cli.recipe import load_recipe, refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.advice import advice_line
from mem_gpt_cli.report.model import MemoryReport

BLOCKS = {**LLAMA, "config": {**LLAMA["config"], "intermediate_size": 192}}
"""Llama with rows that are whole blocks of nf4."""
LONG = {"name": "gpt2", "config": {**GPT2["config"], "vocab_size": 9000}}
"""GPT-2 with logits that count."""
TRAINING: dict[str, dict[str, Any]] = {
    "plain": {},
    "logits": {"workload": {"batch": 4, "seq": 64, "hold_outputs": True}},
    "eager": {"attention": {"backend": "eager"}},
    "checkpointed": {"checkpointing": {"policy": "full"}, "workload": {"batch": 1, "seq": 8}},
    "on a card": {"device": "h100", "checkpointing": {"policy": "full"}},
    "qlora": {"adapters": {"kind": "qlora"}},
    "chunked": {"loss": {"kind": "chunked"}, "workload": {"batch": 4, "seq": 64}},
    "every third": {"checkpointing": {"policy": "every_n", "every": 3}, "workload": {"batch": 2, "seq": 64}},
}


def every(recipe: Recipe) -> tuple[MemoryReport, tuple[Advice, ...]]:
    report = estimate(recipe)
    return report, advice(recipe, report, every=True)


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("model", [GPT2, BLOCKS], ids=["gpt2", "llama"])
def test_each_advice_keeps_its_promise(model: dict[str, Any], name: str) -> None:
    recipe = small_recipe(model, "training", **TRAINING[name])
    report, found = every(recipe)
    assert found
    for one in found:
        followed = Recipe.model_validate(changed(recipe, one.set).model_dump())
        refuse_unavailable(followed, "profile")
        saved = report.allocated_bytes - estimate(followed).allocated_bytes
        assert one.saved_bytes == pytest.approx(saved, rel=0.02), one.change
        assert one.saved_bytes >= WORTHWHILE * report.allocated_bytes


@pytest.mark.parametrize("name", TRAINING)
def test_the_cheapest_comes_first(name: str) -> None:
    recipe = small_recipe(GPT2, "training", **TRAINING[name])
    report, found = every(recipe)
    ranks = [PRICES.index(one.price) for one in found]
    assert ranks == sorted(ranks)
    for price in ("free", "time"):
        saved = [one.saved_bytes for one in found if one.price == price]
        assert saved == sorted(saved, reverse=True)
    assert advice(recipe, report)[0] == found[0]


def test_the_hidden_peak_of_the_optimizers_step() -> None:
    overrides = ["model.name=gpt2-xl", "task=training", "workload.seq=1024", "checkpointing.policy=full"]
    recipe = load_recipe(overrides=[*overrides, "device=h100"])
    report = estimate(recipe)
    assert report.peak.name == "optimizer_step"
    first = advice(recipe, report)[0]
    assert (first.change, first.price) == ("fused AdamW", "free")
    roots = 4 * report.model.parameters  # of all second moments; less is saved, because backward comes next
    followed = estimate(load_recipe(overrides=[*overrides, "device=h100", "optimizer.implementation=fused"]))
    assert followed.peak.name == "backward"
    assert 0.9 * roots < report.allocated_bytes - followed.allocated_bytes < roots
    assert first.saved_bytes == pytest.approx(report.allocated_bytes - followed.allocated_bytes, rel=0.03)


def test_policies_of_checkpointing_are_tried_and_left_for_fuller_ones() -> None:
    plain = every(small_recipe(LONG, "training", workload={"batch": 2, "seq": 200}))[1]
    found = {one.change: one for one in plain}
    policies = ("full checkpointing", "selective checkpointing", "every second layer checkpointed")
    assert {found[name].set["checkpointing.policy"] for name in policies} == {"full", "selective", "every_n"}
    assert {found[name].price for name in policies} == {"time"}
    third = small_recipe(
        LONG,
        "training",
        workload={"batch": 2, "seq": 200},
        checkpointing={"policy": "every_n", "every": 3},
    )
    of_third = [one for one in every(third)[1] if "checkpoint" in one.change]
    full = {"checkpointing.policy": "full", "checkpointing.every": None}
    assert [one.set for one in of_third] == [full]


def test_of_changes_that_save_alike_the_quicker_comes_first() -> None:
    recipe = load_recipe(overrides=["model.name=gpt2", "task=training", "workload.seq=384"])
    first, *others = (one for one in every(recipe)[1] if one.price == "time")
    assert first.change == "selective checkpointing"
    assert "full checkpointing" in {one.change for one in others if one.saved_bytes == first.saved_bytes}


def test_a_chunked_loss_is_cut_smaller_while_its_products_are_worth_it() -> None:
    work = {"batch": 4, "seq": 128}
    for chunk, advised in ((None, 128), (4096, 128), (256, 64), (100, None)):
        recipe = small_recipe(
            LONG,
            "training",
            workload=work,
            checkpointing={"policy": "full"},
            loss={"kind": "chunked", "chunk": chunk},
        )
        found = [one.set["loss.chunk"] for one in every(recipe)[1] if "loss.chunk" in one.set]
        assert found == ([advised] if advised else [])


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_other_rules_of_updating_are_tried_where_the_step_is_the_peak(name: str) -> None:
    large = ["model.name=gpt2", "task=training", "workload.seq=64", "model.dropout=0", "device=h100"]
    kept = {"Adafactor", "8-bit Lion"}
    step = load_recipe(overrides=[*large, f"optimizer.name={name}", "checkpointing.policy=full"])
    report, found = every(step)
    assert (report.peak.name == "optimizer_step") == (name == "adamw")
    assert ({one.change for one in found} & kept == kept) == (name == "adamw")
    elsewhere = load_recipe(overrides=[*large[:2], "workload.seq=1024", f"optimizer.name={name}"])
    report, found = every(elsewhere)
    assert report.peak.name == "backward"
    assert not {one.change for one in found} & kept


def test_what_changes_the_logits_is_tried_where_logits_stand() -> None:
    few = small_recipe(GPT2, "training", workload={"batch": 1, "seq": 8}, checkpointing={"policy": "full"})
    many = small_recipe(
        LONG,
        "training",
        workload={"batch": 3, "seq": 256},
        checkpointing={"policy": "full"},
    )
    assert "chunked loss" not in {one.change for one in every(few)[1]}
    assert every(many)[1][0].change == "chunked loss"


def test_nothing_is_advised_that_is_there_already_or_refused() -> None:
    recipe = small_recipe(
        BLOCKS,
        "training",
        adapters={"kind": "qlora"},
        loss={"kind": "chunked"},
        checkpointing={"policy": "full"},
        optimizer={"name": "adamw_8bit"},
        workload={"batch": 1, "seq": 64, "autocast": "bf16"},
    )
    assert every(recipe)[1] == ()


def test_inference_has_advice_of_its_own() -> None:
    requests = {"requests": [16, 200, 40], "new_tokens": 4}
    found = every(small_recipe(GPT2, "inference", workload=requests, attention={"backend": "eager"}))[1]
    assert found[0].set == {"attention.backend": "sdpa"}
    assert {"weights in bf16", "a paged cache, without padding"} & {one.change for one in found}
    longer = {"kind": "static", "max_tokens": 250}
    found = every(small_recipe(GPT2, "inference", kv_cache=longer))[1]
    assert found[0].set == {"kv_cache.max_tokens": None}


def test_the_line_under_a_table() -> None:
    work = {"batch": 2, "seq": 200}
    recipe = small_recipe(BLOCKS, "training", attention={"backend": "eager"}, workload=work)
    result = CliRunner().invoke(app, ["estimate", *flags(recipe)])
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())  # a line that is wider than the terminal goes on in the next
    assert "Cheapest change that lowers it: SDPA in place of eager attention: -" in printed
    assert "which costs nothing" in printed
    assert "--set attention.backend=sdpa" in result.output


def test_json_lists_every_advice() -> None:
    work = {"batch": 2, "seq": 200}
    recipe = small_recipe(BLOCKS, "training", attention={"backend": "eager"}, workload=work)
    result = CliRunner().invoke(app, ["estimate", "--json", *flags(recipe)])
    found = json.loads(result.stdout)["details"]["advice"]
    assert len(found) > 2
    assert all(set(one) == {"change", "set", "saved_bytes", "price"} for one in found)
    assert all(isinstance(one["saved_bytes"], int) for one in found)


def test_a_report_without_advice_has_no_line() -> None:
    assert advice_line(estimate(small_recipe(GPT2, "training"))) is None


def flags(recipe: Recipe) -> list[str]:
    """The command line of a small recipe."""
    config = json.dumps(recipe.model.config)
    keys = {
        "model.name": recipe.model.name,
        "model.config": config,
        "task": recipe.task,
        "workload.batch": recipe.workload.batch,
        "workload.seq": recipe.workload.seq,
        "attention.backend": recipe.attention.backend,
        "device.threads": 1,
    }
    return [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
