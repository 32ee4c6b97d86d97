"""`memgpt profile` and the timeline of `memgpt estimate --trace`, as a user calls them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mem_gpt_cli.cli.main import run
from tests.profiled import LLAMA

SMALL = {**LLAMA["config"], "num_hidden_layers": 1}
FLAGS = (
    "--model",
    LLAMA["name"],
    *(flag for key, value in SMALL.items() for flag in ("--set", f"model.config.{key}={value}")),
    "--set",
    "device.threads=1",
    "--set",
    "workload.prompt_tokens=32",
    "--new-tokens",
    "3",
)


def test_json_holds_the_measured_report_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", *FLAGS, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["lens"] == "profile"
    assert report["peak"]["allocated_bytes"] == sum(report["peak"]["components"].values())
    assert report["provenance"]["reserved_bytes"] == "unavailable"
    assert report["peak"]["reserved_bytes"] is None
    assert report["speed"]["ttft_ms"] > 0


def test_per_token_as_json_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", *FLAGS, "--per-token", "--json"]) == 0
    tokens = json.loads(capsys.readouterr().out)
    assert tokens["cache_bytes_per_token"] == 2 * 2 * 16 * 4
    assert [token["index"] for token in tokens["with_cache"]] == [1, 2, 3]
    assert run(["profile", *FLAGS, "--per-token"]) == 0
    assert "each token adds 256 B" in " ".join(capsys.readouterr().out.split())


def test_timelines_of_both_lenses_show_the_same_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured, traced = tmp_path / "measured.csv", tmp_path / "traced.csv"
    assert run(["profile", *FLAGS, "--json", "--timeline", str(measured)]) == 0
    assert run(["estimate", "--trace", *FLAGS, "--json", "--timeline", str(traced)]) == 0
    assert str(traced) in capsys.readouterr().err
    peaks = []
    for path in (measured, traced):
        with path.open(newline="") as file:
            peaks.append(max(int(row["allocated_bytes"]) for row in csv.DictReader(file)))
    assert abs(peaks[0] - peaks[1]) <= 4096


@pytest.mark.parametrize(
    "arguments",
    [
        ["profile", *FLAGS, "--task", "training", "--set", "workload.prompt_tokens=null", "--per-token"],
        ["profile", *FLAGS, "--per-token", "--timeline", "x.html"],
        ["profile", *FLAGS, "--timeline", "x.gif"],
        ["estimate", *FLAGS, "--timeline", "x.html"],
    ],
)
def test_what_does_not_go_together_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
