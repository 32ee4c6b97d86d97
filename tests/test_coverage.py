"""Diverse model types of the registry: each runs for real, traces, and both agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


@pytest.mark.parametrize(
    ("model_type", "tasks"),
    [
        (
            "mamba",
            ("inference",),
        ),  # no attention: states instead of keys and values, another name for the cache
        ("qwen3_moe", ("training",)),  # experts by grouped products
        ("opt", ("inference", "training")),  # learned positions
        ("gemma3", ("inference",)),  # the text part of a multimodal model, windows
        ("jamba", ("training",)),  # Mamba, attention and experts in one
        ("reformer", ("training",)),  # looks at its tokens, hashes into buckets
    ],
)
def test_a_model_type_runs_traces_and_agrees(
    model_type: str, tasks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.coverage import cell, table

    shorter = {
        "inference": {"batch": 2, "prompt_tokens": 16, "new_tokens": 2},
        "training": {"batch": 2, "seq": 16, "steps": 1},
    }
    monkeypatch.setattr(cell, "WORKLOADS", {task: shorter[task] for task in tasks})
    found = cell.examine(model_type)
    row = table.flat(found)
    for task in tasks:
        assert row[f"{task}_runs"] == "yes", row[f"{task}_reason"]
        assert row[f"{task}_traces"] == "yes", row[f"{task}_reason"]
        assert table.within(row, task), found[task]
        assert int(row[f"{task}_measured_bytes"]) > 4 * int(row["parameters"])


def test_every_registered_type_is_in_the_committed_table() -> None:
    from benchmarks.coverage import table
    from benchmarks.coverage.run import PAGE, RESULTS
    from benchmarks.coverage.small import model_types

    rows = table.read(RESULTS)
    assert sorted(rows) == sorted(model_types())
    for task in table.TASKS:
        ran = [row for row in rows.values() if row[f"{task}_runs"] == "yes"]
        traced = [row for row in ran if row[f"{task}_traces"] == "yes"]
        assert len(ran) > 150
        assert len(traced) >= 0.95 * len(ran)
        assert all(row[f"{task}_reason"] for row in rows.values() if row not in traced)
    versions = PAGE.read_text().partition("`results/coverage.csv`; ")[2].partition(".\n")[0]
    assert PAGE.read_text() == table.page(rows, versions)


def test_small_configs_stay_small_and_keep_what_is_derived() -> None:
    from benchmarks.coverage.small import small_config

    config: dict[str, Any] = small_config("llama")
    assert config["hidden_size"] == 64
    assert "layer_types" not in config
    assert small_config("gpt2")["eos_token_id"] < small_config("gpt2")["vocab_size"]
    assert small_config("gpt_neo")["attention_types"] == [[["global", "local"], 2]]
