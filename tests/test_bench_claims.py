"""Claims in a sweep: held against what is measured, a miss told with its cause."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mem_gpt_cli.bench import sweep
from mem_gpt_cli.bench.claims import judged
from mem_gpt_cli.bench.claims_table import claims_table
from mem_gpt_cli.bench.columns import COLUMNS
from mem_gpt_cli.bench.store import Store
from mem_gpt_cli.cli import bench as command
from mem_gpt_cli.cli.main import run
from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.recipe import expand, load_recipe
from mem_gpt_cli.recipe.schema import Claim

SWEEP = """
device: {name: cpu, threads: 1}
model: {name: gpt2, weights: random, config: {n_layer: 1, n_embd: 32, n_head: 2, vocab_size: 301}}
workload: {batch: 2, prompt_tokens: 200, new_tokens: 2}
sweep:
  baseline: {attention.backend: eager}
  axes: {attention.backend: [eager, sdpa]}
  claims:
    - {name: sdpa, of: {attention.backend: CELL}, memory_saved_percent: 99, quality_lost_percent: 0}
"""
MIB = 2**20


def row(**given: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(COLUMNS),
        "model": "m",
        "measured_peak_bytes": 50 * MIB,
        "measured_peak_weights_bytes": 40 * MIB,
        "measured_peak_activations_bytes": 10 * MIB,
        "measured_peak_phase": "prefill",
        "measured_peak_operation": "aten.mm",
        "memory_ratio": 0.5,
        "speed_ratio": 0.8,
        "prefill_s": 2.0,
        **given,
    }


BASELINE = row(measured_peak_weights_bytes=80 * MIB, measured_peak_activations_bytes=20 * MIB, prefill_s=1.6)


@pytest.mark.parametrize(
    ("claim", "verdicts"),
    [
        ({"memory_saved_percent": 50, "speed_ratio": 0.8}, ("beaten", "beaten", None)),
        ({"memory_saved_percent": 50.1, "speed_ratio": 0.81}, ("missed", "missed", None)),
        ({"quality_lost_percent": 1}, (None, None, "unmeasured")),
    ],
)
def test_each_aspect_has_its_verdict(claim: dict[str, float], verdicts: tuple[str | None, ...]) -> None:
    found = judged(row(), BASELINE, Claim(name="c", of={}, **claim))  # type: ignore[arg-type]
    assert tuple(found[f"{name}_verdict"] for name in ("memory", "speed", "quality")) == verdicts
    assert set(found) <= set(COLUMNS)


def test_a_miss_names_what_holds_the_peak_and_where_the_time_goes() -> None:
    cause = judged(row(), BASELINE, Claim(name="c", of={}, memory_saved_percent=75, speed_ratio=2))[
        "miss_cause"
    ]
    assert cause == (
        "memory: the peak, in prefill at aten.mm, is weights 40.0 MiB (baseline 80.0 MiB), activations "
        "10.0 MiB (baseline 20.0 MiB); speed: prefill takes 2.00 s (baseline 1.60 s)"
    )


@pytest.mark.parametrize(
    ("mine", "lost", "verdict"),
    [(20.0, 0.0, "beaten"), (20.0005, 0.0025, "beaten"), (20.2, 1.0, "missed"), (19.0, -5.0, "beaten")],
)
def test_quality_is_what_perplexity_rises_by(mine: float, lost: float, verdict: str) -> None:
    claim = Claim(name="c", of={}, quality_lost_percent=0)
    found = judged(row() | {"perplexity": mine}, BASELINE | {"perplexity": 20.0}, claim)
    assert found["quality_lost_percent"] == pytest.approx(lost)
    assert found["quality_verdict"] == verdict


def test_a_baseline_that_was_read_back_is_compared_with_as_before(tmp_path: Path) -> None:
    """``--resume`` takes the baseline's row from the file."""
    store = Store(tmp_path / "r.csv")
    baseline = {**BASELINE, "perplexity": 20.5, "digest": "d", "status": "ok", "lenses": ["profile"]}
    store.append(baseline)
    again = store.finished(["profile"])["d"]
    assert again == baseline
    claim = Claim(name="c", of={}, memory_saved_percent=10, quality_lost_percent=1)
    mine = row(perplexity=30.0)
    assert judged(mine, again, claim) == judged(mine, baseline, claim)


def test_what_was_not_measured_is_no_saving() -> None:
    found = judged(row(measured_peak_bytes=None), BASELINE, Claim(name="c", of={}, memory_saved_percent=1))
    assert found["memory_saved_percent"] is None
    assert found["memory_verdict"] == "unmeasured"


def test_a_sweep_prints_and_keeps_its_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both cells in one process: it is the imports that take long."""
    monkeypatch.setattr(command, "Plan", partial(sweep.Plan, cells_per_process=2))
    recipe, table = tmp_path / "r.yaml", tmp_path / "r.csv"
    recipe.write_text(SWEEP.replace("CELL", "sdpa"))
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["bench", str(recipe), "--csv", str(table), "--lenses", "profile"]) == 0
    printed = capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [each["claim"] for each in rows] == ["", "sdpa"]
    assert rows[1]["memory_verdict"] == "missed"
    assert float(rows[1]["memory_saved_percent"]) == pytest.approx(100 * (1 - float(rows[1]["memory_ratio"])))
    assert rows[1]["quality_verdict"] == "unmeasured"
    assert "missed  sdpa, gpt2: memory: the peak, in" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SWEEP.replace("CELL", "flash"), "sweep.claims[0].of: speaks of no cell"),
        (SWEEP.replace("CELL", "eager"), "has no baseline to be compared with"),
        (
            SWEEP.replace("CELL", "sdpa") + "    - {name: b, of: {attention.backend: sdpa}}\n",
            "has a claim already",
        ),
        (SWEEP.replace("CELL", "sdpa").replace("99", "100"), "memory_saved_percent"),
    ],
)
def test_a_claim_of_nothing_is_refused(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(RecipeError) as caught:
        expand(load_recipe(recipe))
    assert message in str(caught.value)


def test_no_claims_no_table() -> None:
    assert list(claims_table([row()])) == []
