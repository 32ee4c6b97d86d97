"""``memgpt bench`` end to end: real cells in real processes, and what kills them."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from mem_gpt_cli.bench import limits, sweep, worker
from mem_gpt_cli.bench.cell import run_cell
from mem_gpt_cli.bench.columns import COLUMNS
from mem_gpt_cli.bench.fresh import HeldBytes, given_back
from mem_gpt_cli.bench.outcome import Outcome, best_prediction
from mem_gpt_cli.bench.store import Store, typed
from mem_gpt_cli.cli import bench as command
from mem_gpt_cli.cli.main import run
from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.recipe import expand, load_recipe
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import (
    COMPONENTS,
    DeviceSummary,
    Lens,
    MemoryReport,
    ModelSummary,
    Phase,
    components,
)

SMALL = """
device: {name: cpu, threads: 1}
model: {name: gpt2, weights: random, config: {n_layer: 1, n_embd: 32, n_head: 2, vocab_size: 301}}
"""
CELLS = """
sweep:
  baseline: {attention.backend: sdpa}
  cells:
    - {task: inference, attention.backend: eager, workload.prompt_tokens: 40, workload.new_tokens: 3}
    - {task: inference, attention.backend: sdpa, workload.prompt_tokens: 40, workload.new_tokens: 3}
    - {task: training, attention.backend: sdpa, workload.seq: 24}
    - {task: training, attention.backend: sdpa, workload.seq: 1000, workload.batch: 16}
"""
ESTIMATE = ("--lenses", "estimate")
KILLED, STARVED = 2, 3
ROOM_BYTES = 16 * 2**20


class HarmedWorker(worker.Worker):
    """A worker to whose process something happens in the middle of a training's forward."""

    def run(
        self,
        recipe: Recipe,
        lenses: Sequence[Lens],
        timeout_s: float | None,
        on_phase: Callable[[str, int, int], None],
    ) -> Outcome:
        def harm(phase: str, step: int, steps: int) -> None:
            assert self.pid is not None
            if phase == "forward" and recipe.workload.seq == 24:
                os.kill(self.pid, signal.SIGKILL)
            elif phase == "forward" and step < 4:
                size = int(Path(f"/proc/{self.pid}/statm").read_text().split()[0]) * resource.getpagesize()
                resource.prlimit(self.pid, resource.RLIMIT_AS, (size + ROOM_BYTES,) * 2)
            on_phase(phase, step, steps)

        return super().run(recipe, lenses, timeout_s, harm)


class Answer(NamedTuple):
    code: int
    out: str
    err: str
    path: Path
    rows: dict[int, dict[str, str]]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """Four cells: two that run, one that is killed, one whose memory runs out.

    The first three share a process, whose imports take longer than they do; the last has one of its own.
    """
    folder = tmp_path_factory.mktemp("bench")
    path, table = recipe_file(folder, SMALL + CELLS), folder / "out" / "small.csv"
    with pytest.MonkeyPatch.context() as patch, (folder / "printed").open("w+") as printed:
        patch.setattr(sweep, "Worker", HarmedWorker)
        patch.setattr(command, "Plan", partial(sweep.Plan, cells_per_process=3))
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "stdout", printed)
        code = run(["bench", str(path), "--csv", str(table)])
        printed.seek(0)
        out = printed.read()
    rows = {int(row["cell"]): row for row in rows_of(table)}
    return Answer(code, out, "", table, rows)


def test_every_cell_has_its_row_whatever_became_of_it(harmed: Answer) -> None:
    assert {index: row["status"] for index, row in harmed.rows.items()} == {
        0: "ok",
        1: "ok",
        KILLED: "error",
        STARVED: "oom",
    }
    assert harmed.code == 5
    with harmed.path.open(newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_what_was_predicted_and_measured_is_in_the_row(harmed: Answer) -> None:
    row = typed(harmed.rows[0])
    assert row["lenses"] == ["estimate", "trace", "profile"]
    assert row["values"]["workload.prompt_tokens"] == row["prompt_tokens"] == 40
    assert (row["seq"], row["new_tokens"], row["attention"]) == (43, 3, "eager")
    measured = row["measured_peak_bytes"]
    assert abs(row["trace_residual_bytes"]) <= 4096
    for lens in ("formula", "trace"):
        off = row[f"{lens}_peak_bytes"] - measured
        assert row[f"{lens}_residual_bytes"] == off
        assert row[f"{lens}_residual_percent"] == pytest.approx(100 * off / measured)
    assert sum(row[f"measured_peak_{name}_bytes"] for name in COMPONENTS) == measured
    assert max(row[f"measured_{name}_bytes"] for name in ("load", "prefill", "decode")) == measured
    assert row["process_bytes"] > measured
    assert row["tokens_per_s"] > 0
    assert row["ttft_ms"] > 0


def test_what_is_not_available_is_an_empty_cell(harmed: Answer) -> None:
    row = harmed.rows[0]
    for column in (
        "step_s",
        "reserved_bytes",
        "device_bytes",
        "measured_forward_bytes",
        "error",
        "failed_phase",
    ):
        assert row[column] == "", column


def test_a_row_is_compared_with_its_baseline_though_that_stands_later(harmed: Answer) -> None:
    eager, sdpa = typed(harmed.rows[0]), typed(harmed.rows[1])
    assert eager["baseline_cell"] == sdpa["baseline_cell"] == 1
    assert sdpa["memory_ratio"] == sdpa["speed_ratio"] == 1
    assert eager["memory_ratio"] == pytest.approx(eager["measured_peak_bytes"] / sdpa["measured_peak_bytes"])
    assert eager["speed_ratio"] == pytest.approx(eager["tokens_per_s"] / sdpa["tokens_per_s"])


def test_a_killed_cell_keeps_what_it_had_answered(harmed: Answer) -> None:
    row = typed(harmed.rows[KILLED])
    assert row["failed_phase"] in (
        "forward",
        "backward",
        "optimizer_step",
    )  # it goes on until the signal arrives
    assert "SIGKILL" in row["error"]
    assert row["trace_peak_bytes"] > row["formula_load_bytes"] > 0
    assert row["measured_peak_bytes"] is None
    assert row["trace_residual_bytes"] is None


def test_out_of_memory_is_a_row_with_its_phase_and_its_predicted_need(harmed: Answer) -> None:
    row = typed(harmed.rows[STARVED])
    assert row["failed_phase"] == "forward"
    assert row["trace_peak_bytes"] > ROOM_BYTES
    assert "allocate memory" in row["error"]


def test_the_table_has_a_line_a_cell_and_fits_80_columns(harmed: Answer) -> None:
    lines = harmed.out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(harmed.out.split())
    for words in ("baseline", "attention eager", "oom", "error", "tokens/s"):
        assert words in text


def test_resume_runs_what_is_not_ok_and_keeps_the_rest(
    harmed: Answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "small.csv"
    lines = harmed.path.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:3]))  # the two good rows
    small = SMALL + CELLS.replace("workload.seq: 1000, workload.batch: 16", "workload.seq: 25")
    code = run(
        ["bench", str(recipe_file(tmp_path, small)), "--csv", str(table), "--resume", "--json", *ESTIMATE]
    )
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["statuses"] == {"ok": 4}
    assert table.read_text().startswith("".join(lines[:3]))
    added = rows_of(table)[2:]
    assert [(row["cell"], row["status"], row["lenses"]) for row in added] == [
        ("2", "ok", '["estimate"]'),
        ("3", "ok", '["estimate"]'),
    ]
    kept = {cell["cell"]: cell for cell in answer["cells"]}
    assert kept[0]["measured_peak_bytes"] == int(harmed.rows[0]["measured_peak_bytes"])
    assert kept[3]["memory_ratio"] > 0


def test_rows_of_fewer_lenses_are_not_taken_for_whole_ones(tmp_path: Path) -> None:
    path, table = recipe_file(tmp_path, SMALL), tmp_path / "out.csv"
    assert run(["bench", str(path), "--csv", str(table), *ESTIMATE]) == 0
    assert Store(table).finished(["estimate"])
    assert not Store(table).finished(["estimate", "trace"])


def test_a_cell_above_its_budget_is_pruned_with_its_need(tmp_path: Path) -> None:
    path, table = recipe_file(tmp_path, SMALL), tmp_path / "out.csv"
    arguments = ["bench", str(path), "--csv", str(table), "--budget", "100KiB"]
    assert run([*arguments, "--lenses", "estimate,profile"]) == 0
    (row,) = map(typed, rows_of(table))
    assert row["status"] == "pruned"
    assert row["formula_peak_bytes"] > row["budget_bytes"] == 100 * 1024
    assert row["measured_peak_bytes"] is None
    assert "the budget (100 KiB)" in row["error"]


def test_a_cell_above_the_machines_memory_is_pruned(tmp_path: Path) -> None:
    path, table = recipe_file(tmp_path, SMALL), tmp_path / "out.csv"
    large = ["--batch", "100000000", "--seq", "1024", "--task", "training"]
    assert run(["bench", str(path), "--csv", str(table), *large, "--lenses", "estimate,profile"]) == 0
    (row,) = rows_of(table)
    assert row["status"] == "pruned"
    assert "what this machine has left" in row["error"]


def test_a_cell_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    path, table = recipe_file(tmp_path, SMALL), tmp_path / "out.csv"
    assert run(["bench", str(path), "--csv", str(table), "--timeout", "0.05"]) == 5
    (row,) = rows_of(table)
    assert row["status"] == "error"
    assert "longer than 0.05 s" in row["error"]


def test_an_interrupt_keeps_the_rows_and_shows_them(tmp_path: Path) -> None:
    axes = "\nsweep: {axes: {workload.batch: [" + ", ".join(map(str, range(1, 101))) + "]}}\n"
    path, table = recipe_file(tmp_path, SMALL + axes), tmp_path / "out.csv"
    command = [sys.executable, "-m", "mem_gpt_cli.cli.main", "bench", str(path), "--csv", str(table)]
    with subprocess.Popen(
        [*command, *ESTIMATE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "[2/100]" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    rows = rows_of(table)
    assert 2 <= len(rows) < 100
    assert "batch 2" in out
    assert f"{len(rows)} of 100 cells" in err


def test_no_cell_is_run_for_a_csv_of_other_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, table = recipe_file(tmp_path, SMALL), tmp_path / "out.csv"
    table.write_text("a,b\n1,2\n")
    assert run(["bench", str(path), "--csv", str(table)]) == 2
    assert "other columns" in capsys.readouterr().err
    assert table.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--lenses", "estimate,guess"], "'guess' is no lens"), (["--timeout", "0"], "above 0")],
)
def test_wrong_flags_are_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "--csv", str(tmp_path / "out.csv"), *arguments]) == 2
    assert words in capsys.readouterr().err


def events_of(recipe: Recipe, lenses: Sequence[Lens]) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    run_cell(recipe, lenses, lambda event, facts: events.append((event, facts)))
    return events


def test_a_lens_that_cannot_answer_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(recipe: Recipe) -> MemoryReport:
        raise UnsupportedError(f"{recipe.model.name} cannot be traced")

    monkeypatch.setattr(import_module("mem_gpt_cli.trace"), "trace", refuses)
    recipe = load_recipe(recipe_file(tmp_path, SMALL))
    events = events_of(recipe, ["estimate", "trace"])
    assert [(event, facts["lens"]) for event, facts in events] == [
        ("report", "estimate"),
        ("refused", "trace"),
    ]
    cell = worker._Cell(["estimate", "trace"])
    for event, facts in events:
        cell.take({"event": event, **facts}, lambda *_: None)
    outcome = cell.outcome(1.0)
    assert outcome.status == "unsupported"
    assert best_prediction(outcome.reports) is outcome.reports["estimate"]
    assert "gpt2 cannot be traced" in (outcome.error or "")


@pytest.mark.parametrize(("cells_per_process", "processes"), [(1, 3), (2, 2)])
def test_cells_share_a_process_where_a_plan_says_so(
    cells_per_process: int, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int | None] = []

    class Noted(worker.Worker):
        def run(self, *arguments: Any) -> Outcome:
            outcome = super().run(*arguments)
            pids.append(self.pid)
            return outcome

    monkeypatch.setattr(sweep, "Worker", Noted)
    axes = "sweep: {axes: {workload.batch: [1, 2, 3]}}\n"
    plan = sweep.Plan(
        name="small",
        cells=expand(load_recipe(recipe_file(tmp_path, SMALL + axes))),
        csv=tmp_path / "out.csv",
        lenses=["estimate"],
        cells_per_process=cells_per_process,
    )
    rows = list(sweep.run_sweep(plan))
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert len(set(pids)) == processes
    assert [typed(row)["formula_peak_bytes"] for row in rows_of(plan.csv)] == [
        row["formula_peak_bytes"] for row in rows
    ]


def prediction(**ladder: Any) -> MemoryReport:
    """A trace's report of a run on a GPU: a thousand bytes of weights, and the ladder above them."""
    return MemoryReport(
        lens="trace",
        task="inference",
        recipe={},
        model=ModelSummary("gpt2", "gpt2", 1),
        device=DeviceSummary("cuda", "h100"),
        phases=(Phase("load", 1000, components(weights=1000)),),
        provenance={},
        **ladder,
    )


@pytest.mark.parametrize(
    ("ladder", "need", "of_allocator"),
    [
        ({}, 1000, 1000),
        ({"reserved_bytes": 2000}, 2000, 2000),
        ({"reserved_bytes": 2000, "process_bytes": 2600}, 2600, 2000),
    ],
)
def test_a_gpus_need_is_the_highest_rung_that_is_known(
    ladder: dict[str, int], need: int, of_allocator: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = prediction(**ladder)
    recipe = Recipe.model_validate({"device": "h100", "budget": {"memory": need}})
    monkeypatch.setattr(limits, "available_bytes", lambda _: of_allocator)
    assert limits.too_large(recipe, report) is None
    monkeypatch.setattr(limits, "available_bytes", lambda _: of_allocator - 1)
    assert "what this machine has left" in (limits.too_large(recipe, report) or "")
    less = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"memory": need - 1})})
    assert "more than the budget" in (limits.too_large(less, report) or "")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A T4 that is empty and an H100 that holds something, of which only the second is asked for."""
    called: list[str] = []
    cuda = torch.cuda
    names, total, reserved = ("Tesla T4", "NVIDIA H100 80GB HBM3"), 80 * 2**30, [0, 512]
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        cuda, "get_device_properties", lambda index: SimpleNamespace(name=names[index], total_memory=total)
    )
    monkeypatch.setattr(cuda, "mem_get_info", lambda index: (1000 + index, total))
    monkeypatch.setattr(cuda, "memory_allocated", lambda index: index)
    monkeypatch.setattr(cuda, "memory_reserved", lambda index: reserved[index] * len(called))
    monkeypatch.setattr(cuda, "empty_cache", lambda: called.append("cache"))
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: called.append("workspaces"), raising=False
    )
    return called


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("device", "left"), [("cuda:1", 1001), ("h100", 1001), ("t4", 1000), ("a100", None)])
def test_what_is_left_is_asked_of_the_recipes_gpu(device: str, left: int | None) -> None:
    assert limits.available_bytes(Recipe.model_validate({"device": device})) == left


def test_what_a_cell_leaves_on_its_gpu_is_given_back(two_gpus: list[str]) -> None:
    def held(device: str) -> HeldBytes | None:
        two_gpus.clear()
        found = given_back(Recipe.model_validate({"device": device}).device)
        assert two_gpus == ["workspaces", "cache"]
        return found

    assert held("h100") == held("cuda:1") == HeldBytes(1, 2 * 512)
    assert held("cuda:0") == HeldBytes(0, 0)
    assert held("a100") is None
    assert held("cpu") is None


def test_without_cuda_nothing_is_given_back() -> None:
    assert given_back(Recipe.model_validate({"device": "cuda"}).device) is None


def test_a_cell_of_other_allocator_settings_gets_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    found = []
    workers = worker.Worker()
    try:
        for allocator in (None, "expandable_segments:True", "expandable_segments:True", None):
            recipe = Recipe.model_validate({"device": {"name": "h100", "allocator": allocator}})
            workers.run(recipe, ["estimate"], None, lambda *_: None)
            environment = Path(f"/proc/{workers.pid}/environ").read_text().split("\0")
            found.append(
                (workers.pid, sorted(line for line in environment if re.match("PYTORCH.*ALLOC_CONF", line)))
            )
    finally:
        workers.close()
    inherited, given = (
        ["PYTORCH_ALLOC_CONF=max_split_size_mb:64"],
        ["PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"],
    )
    assert [settings for _, settings in found] == [inherited, given, given, inherited]
    assert len({pid for pid, _ in found}) == 3
    assert found[1] == found[2]
