"""``memgpt models``: what it lists, how a filter narrows it, that it fits a terminal."""

from __future__ import annotations

import json

import pytest

from mem_gpt_cli.cli.main import run
from mem_gpt_cli.model import catalogue

Captured = pytest.CaptureFixture[str]


def listed(capsys: Captured, *arguments: str) -> list[str]:
    """The rows of the table, without its head."""
    assert run(["models", *arguments]) == 0
    return capsys.readouterr().out.splitlines()[1:]


def test_all_models_in_80_columns(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = listed(capsys)
    assert [row.split()[0] for row in rows] == ["memgpt-tiny", *(entry.name for entry in catalogue())]
    assert max(len(row.rstrip()) for row in rows) <= 80
    assert not any("…" in row for row in rows)


def test_a_row_says_what_the_model_is(capsys: Captured) -> None:
    assert listed(capsys, "llama-2-70b")[0].split() == (
        ["llama-2-70b", "69.0", "B", "80", "8192", "GQA", "64/8", "4,096"]
    )
    assert listed(capsys, "mixtral-8x7b")[0].split()[-2:] == ["2/8", "32,768"]
    assert listed(capsys, "deepseek-v3")[0].split()[5:7] == ["MLA", "128"]
    assert listed(capsys, "falcon-7b")[0].split()[5:7] == ["MQA", "71/1"]


def test_every_word_of_a_filter_must_be_found(capsys: Captured) -> None:
    assert [row.split()[0] for row in listed(capsys, "gemma", "27B")] == ["gemma-2-27b", "gemma-3-27b"]
    assert [row.split()[0] for row in listed(capsys, "mistralai/Mixtral")] == [
        "mixtral-8x7b",
        "mixtral-8x22b",
    ]


def test_json_is_one_array_with_every_number(capsys: Captured) -> None:
    assert run(["models", "gpt2-xl", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert model["parameters"] == 1_557_611_200
    assert model["source"] == "https://huggingface.co/openai-community/gpt2-xl"
    assert (model["layers"], model["hidden"], model["heads"], model["kv_heads"]) == (48, 1600, 25, 25)


def test_a_filter_that_finds_nothing_is_a_usage_error(capsys: Captured) -> None:
    assert run(["models", "no-such-model"]) == 2
    assert capsys.readouterr().err == (
        "memgpt: error: no model of the catalogue has 'no-such-model' in its name: try fewer words\n"
    )
