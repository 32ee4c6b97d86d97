"""The GPU kit, rehearsed on the CPU: its files, its time limit, a kill in the middle, and who was first."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import ROOT, accuracy, crew, histories, predictions, sources, speed, suite, summary
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.cells import KitCell, cells_of
from benchmarks.gpu.child import run_child
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.crew import Crew, Job, Rest
from benchmarks.gpu.histories import record
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.record import LeftOutError, Record, runs_in
from benchmarks.gpu.stages import STAGES
from benchmarks.rehearsal import build
from mem_gpt_cli.bench.outcome import Outcome
from mem_gpt_cli.bench.store import typed
from mem_gpt_cli.bench.worker import Worker
from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.report.csv import append_row

KIT = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu"]
NOW = "2026-01-01T00:00:00+00:00"
CELLS = len(cells_of("cuda", "accuracy"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [typed(row) for row in csv.DictReader(file)]


def environment(columns: int = 80) -> dict[str, str]:
    return os.environ | {"COLUMNS": str(columns), "PYTHONPATH": str(ROOT)}


def kit_on_cpu(folder: Path, **changes: Any) -> Kit:
    facts: dict[str, Any] = {
        "device": "cpu",
        "gpu": "cpu",
        "out": folder,
        "predictions": folder / "none.csv",
        "predictions_blob": None,
        "memory_bytes": None,
        "workers": 1,
        "pattern": "*",
        "started": NOW,
        "clock": Clock(100),
    }
    return Kit(**(facts | changes))


def test_a_run_that_is_killed_goes_on_where_it_was_and_through_every_stage(tmp_path: Path) -> None:
    """All of the kit but its own tests, against predictions made before."""
    folder = tmp_path / "out"
    cells = cells_of("cpu", "accuracy")
    predicted = predictions.predict(cells, "cpu", NOW, lambda _: None)
    predictions.write(predicted, tmp_path / "predicted.csv")
    stages = "calibration,accuracy,speed,histories,summary"
    arguments = [
        "--workers",
        "2",
        "--out",
        str(folder),
        "--predictions",
        str(tmp_path / "predicted.csv"),
    ]
    command = [*KIT, *arguments, "--stages", stages]
    path = folder / "accuracy.csv"
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not (path.exists() and rows_of(path)):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    kept = path.read_text()
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert path.read_text().startswith(kept)
    assert Counter(row["name"] for row in rows_of(path)) == {f"tiny/{n}": 1 for n in range(4)}
    killed, resumed = runs_in(folder)
    assert {stage["name"]: stage["status"] for stage in killed["stages"]}["accuracy"] == "running"
    assert {stage["name"]: stage["status"] for stage in resumed["stages"]} == {
        "calibration": "left out",
        "accuracy": "done",
        "speed": "done",
        "histories": "left out",
    }
    assert resumed["packages"]["torch"]
    assert len(list(folder.iterdir())) <= 8
    _each_cell_was_predicted_retraced_and_measured(folder)
    _the_summary_has_gates_and_says_that_it_is_not_blind(folder)
    assert "4 of 4" in done.stdout


def _each_cell_was_predicted_retraced_and_measured(folder: Path) -> None:
    rows = rows_of(folder / "accuracy.csv")
    assert {row["name"] for row in rows} == {cell.name for cell in cells_of("cpu", "accuracy")}
    for row in rows:
        assert row["status"] == "ok"
        measured = row["measured_peak_allocated_bytes"]
        assert measured == max(
            row[f"measured_{phase}_allocated_bytes"] or 0
            for phase in ("load", "prefill", "decode", "forward", "backward", "optimizer_step")
        )
        for lens in ("predicted", "retraced"):
            off = row[f"{lens}_peak_allocated_bytes"] - measured
            assert row[f"{lens}_peak_allocated_difference_bytes"] == off
            assert row[f"{lens}_peak_allocated_difference_percent"] == pytest.approx(100 * off / measured)
            assert abs(off) <= 4096
        assert row["measured_peak_reserved_bytes"] is None  # the CPU reserves nothing
        assert row["predictions_blob"]
    (cells_speed,) = {row["repeats"] for row in rows_of(folder / "speed.csv")}
    assert cells_speed == "5"


def _the_summary_has_gates_and_says_that_it_is_not_blind(folder: Path) -> None:
    found = json.loads((folder / "summary.json").read_text())
    assert found["statuses"] == {"ok": 4}
    assert found["comparisons"]["predicted"]["allocated"]["met"] is True
    assert set(found["comparisons"]["predicted"]) == {"allocated"}  # the CPU reserves nothing
    assert found["blind"]["blind"] in ("no", "undecided")
    training = next(row for row in found["speed"] if row["task"] == "training")
    assert training["median_train_tokens_per_s"] > 0


def test_without_time_the_cells_are_named_and_the_code_says_so(tmp_path: Path) -> None:
    command = [*KIT, "--out", str(tmp_path), "--limit-s", "1", "--stages", "accuracy,speed,summary"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 5, done.stderr
    stages = {stage["name"]: stage for stage in runs_in(tmp_path)[0]["stages"]}
    assert stages["accuracy"]["status"] == stages["speed"]["status"] == "cut off"
    assert "tiny/0" in stages["accuracy"]["why"]
    assert json.loads((tmp_path / "summary.json").read_text())["cells"] == 0


class SlowWorker(Worker):
    """A worker that every cell takes too long for."""

    def run(self, *arguments: Any) -> Outcome:
        return Outcome(status="error", error=f"took longer than {arguments[2]:g} s and was ended")


def test_a_cell_that_the_end_cuts_off_has_no_row_and_a_slow_one_has(tmp_path: Path) -> None:
    stage = accuracy._Stage(kit_on_cpu(tmp_path), tmp_path / "accuracy.csv", {})
    job = stage.job(cells_of("cpu", "accuracy")[0])
    assert job.need_bytes > 0
    assert job.run(SlowWorker(), 10.0, 0) is None
    finish = job.run(SlowWorker(), 10_000.0, 0)
    assert finish is not None
    assert not stage.path.exists()
    finish(0.0)
    (row,) = rows_of(stage.path)
    assert row["status"] == "error"
    assert row["measured_peak_allocated_bytes"] is None
    assert stage.untraced == []


def test_a_cell_with_no_time_left_to_trace_it_has_a_row_and_is_named(tmp_path: Path) -> None:
    stage = accuracy._Stage(kit_on_cpu(tmp_path), tmp_path / "accuracy.csv", {})
    cell = cells_of("cpu", "accuracy")[0]
    stage._finish(cell, SlowWorker(), 0, Outcome(status="ok"), 0.0)
    assert rows_of(stage.path)[0]["status"] == "ok"
    assert stage.untraced == [cell.name]


class RefusedWorker(Worker):
    """A worker that notes what it is asked, and does none of it."""

    asked: list[tuple[str, ...]]

    def run(self, *arguments: Any) -> Outcome:
        self.asked.append(arguments[1])
        return Outcome(status="error", error="not now")


def test_only_cells_with_a_good_row_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RefusedWorker, "asked", [], raising=False)
    monkeypatch.setattr(speed, "Worker", RefusedWorker)
    (cell, *_) = cells_of("cpu", "speed")
    for status, runs in (("error", 1), ("oom", 1), ("ok", 0), ("unsupported", 0)):
        RefusedWorker.asked.clear()
        kit = kit_on_cpu(tmp_path / status, pattern=cell.name)
        row = {"name": cell.name, "digest": cell.digest, "status": status}
        append_row(kit.out / speed.NAME, speed.COLUMNS, row)
        assert speed.run(kit, 1.0) == []
        assert len(RefusedWorker.asked) == runs


@pytest.mark.parametrize(
    ("status", "retraced", "again"),
    [("ok", 512, False), ("ok", None, True), ("unsupported", None, False), ("oom", 512, True)],
)
def test_a_cell_that_was_not_traced_again_is_repeated(
    status: str, retraced: int | None, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RefusedWorker, "asked", [], raising=False)
    monkeypatch.setattr(crew, "Worker", RefusedWorker)
    (cell, *_) = cells_of("cpu", "accuracy")
    kit = kit_on_cpu(tmp_path, pattern=cell.name)
    row = {"digest": cell.digest, "status": status, "retraced_peak_allocated_bytes": retraced}
    append_row(kit.out / accuracy.NAME, accuracy.COLUMNS, row)
    accuracy.run(kit, 1.0)
    assert (("profile",) in RefusedWorker.asked) is again


class StarvedWorker(Worker):
    """A worker whose cells run out of memory."""

    def run(self, *arguments: Any) -> Outcome:  # noqa: ARG002
        return Outcome(status="oom", error="CUDA out of memory")


@pytest.mark.parametrize(("others", "again"), [(0, 0), (2, 1)])
def test_what_runs_out_of_memory_beside_others_is_tried_alone(
    others: int, again: int, tmp_path: Path
) -> None:
    stage = accuracy._Stage(kit_on_cpu(tmp_path), tmp_path / "accuracy.csv", {})
    finish = stage.job(cells_of("cpu", "accuracy")[0]).run(StarvedWorker(), 10_000.0, others)
    assert finish is not None
    finish(1.0)
    assert len(stage.crowded_out) == again
    assert rows_of(stage.path)[0]["status"] == "oom"


class Watched:
    """Jobs that note what runs beside them."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.finished: list[str] = []
        self.highest = 0
        self._running: dict[str, int] = {}
        self._lock = threading.Lock()

    def job(self, name: str, need: int) -> Job:
        def run(worker: Worker, left_s: float, others: int) -> Rest:  # noqa: ARG001
            with self._lock:
                self.order.append(name)
                self._running[name] = need
                if len(self._running) > 1:
                    self.highest = max(self.highest, sum(self._running.values()))
            time.sleep(0.05)
            with self._lock:
                del self._running[name]
            return lambda _: self.finished.append(name)

        return Job(name, need, run)


def test_cells_side_by_side_stay_within_the_room() -> None:
    watched = Watched()
    needs = {"huge": 120, "a": 60, "b": 50, "c": 40, "d": 30, "e": 10, "f": 10}
    left = Crew(4, 100, Clock(60)).run([watched.job(name, need) for name, need in needs.items()])
    assert left == []
    assert watched.order[0] == "huge"
    assert sorted(watched.order) == sorted(watched.finished) == sorted(needs)
    assert 60 < watched.highest <= 100


def test_a_crew_stops_in_time_and_passes_errors_on() -> None:
    watched = Watched()
    assert Crew(2, None, Clock(100), share=0.01).run([watched.job("late", 1)]) == ["late"]
    assert watched.order == []

    def broken(worker: Worker, left_s: float, others: int) -> Rest:  # noqa: ARG001
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Crew(2, None, Clock(60)).run([Job("broken", 1, broken), watched.job("other", 1)])


def test_a_child_ends_in_time_with_its_own_children(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    code = f"""
import pathlib, subprocess
child = subprocess.Popen(["sleep", "60"])
pathlib.Path({str(noted)!r}).write_text(str(child.pid))
child.wait()
"""
    with pytest.raises(subprocess.TimeoutExpired):
        run_child([sys.executable, "-S", "-c", code], 2.0)
    state = Path(f"/proc/{noted.read_text()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_stages_end_one_after_the_other_before_the_limit() -> None:
    shares = [stage.share for stage in STAGES]
    assert shares == sorted(shares)
    assert len(set(shares)) == len(shares)
    assert shares[-1] < 1


def test_a_stage_that_breaks_leaves_the_next_ones(tmp_path: Path) -> None:
    record = Record(tmp_path, {"device": "cpu"})
    with record.stage("first"):
        raise ValueError("no such thing")
    with record.stage("second"):
        raise LeftOutError("not here")
    with record.stage("third") as left:
        left += ["a", "b"]
    stages = runs_in(tmp_path)[0]["stages"]
    assert [(stage["status"], stage["why"]) for stage in stages] == [
        ("failed", "ValueError: no such thing"),
        ("left out", "not here"),
        ("cut off", "no time for a, b"),
    ]
    assert not record.whole


def test_the_gpus_cells_cover_what_they_should() -> None:
    cells = cells_of("cuda", "accuracy")
    assert len(cells) >= 90
    others = [cell for part in ("speed", "claims", "histories") for cell in cells_of("cuda", part)]
    assert len({cell.name for cell in cells}) == len({cell.digest for cell in cells}) == len(cells)
    recipes = [cell.on("h100") for cell in cells]
    for recipe in (
        *recipes,
        *(cell.on("cuda") for cell in others),
    ):
        refuse_unavailable(recipe, "trace")
        refuse_unavailable(recipe, "profile")
        assert recipe.model.weights == "random"
    for values, wanted in (
        (
            {recipe.model.name for recipe in recipes},
            {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama-3.2-1b", "llama-2-7b"},
        ),
        ({recipe.attention.backend for recipe in recipes}, {"eager", "sdpa", "flash", "lsh"}),
        (
            {recipe.kv_cache.kind for recipe in recipes},
            {"none", "dynamic", "static", "quantized", "offloaded", "sliding", "paged"},
        ),
        ({recipe.quantization.scheme for recipe in recipes}, {"none", "int8", "int4", "nf4"}),
        ({recipe.model.dtype for recipe in recipes}, {"fp32", "bf16"}),
        ({recipe.workload.autocast for recipe in recipes}, {"none", "bf16"}),
        (
            {recipe.checkpointing.policy for recipe in recipes},
            {"none", "full", "every_n", "selective", "offload"},
        ),
        ({recipe.optimizer.implementation for recipe in recipes}, {"auto", "loop", "fused"}),
        ({recipe.model.dropout for recipe in recipes}, {None, 0.0}),
        ({recipe.workload.hold_outputs for recipe in recipes}, {True, False}),
        ({recipe.device.allocator for recipe in recipes}, {None, "expandable_segments:True"}),
    ):
        assert values == wanted


def test_a_cell_is_the_same_on_any_device() -> None:
    cell = cells_of("cuda", "accuracy", "gpt2-xl/*")[0]
    assert isinstance(cell, KitCell)
    assert cell.on("h100").device.name == "h100"
    assert cell.on("h100").device.type == "cuda"
    assert cell.cell.recipe.device.name == "cuda"
    assert cells_of("cuda", "accuracy", "attention=flash")
    assert not cells_of("cuda", "accuracy", "gpt9")


def test_the_plan_shows_stages_and_predictions_within_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--plan", "--device", "cpu", "--cells", "tiny/1"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for words in ("calibration", "accuracy.csv", "tiny/1", "KiB"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plan", "--device", "h1000"], "h100"),
        (["--plan", "--write", "--cells", "gpt2/*"], "--cells"),
        (["--plan", "--cells", "nothing"], "no cell"),
        (["--device", "h100"], "belongs to --plan"),
        (["--stages", "guess"], "no stage"),
        (["--stages", "summary"], "--out"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


class Checkout:
    """A repository with predictions and results, commit by commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.predictions = folder / "predictions.csv"
        self.results = folder / "accuracy.csv"
        self.git("init", "-q")

    def git(self, *arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True)

    def commit(self, path: Path, text: str) -> None:
        path.write_text(text)
        self.git("add", path.name)
        self.git("commit", "-q", "-m", path.name)

    def judge(self, began: datetime | None = None, text: str = "first") -> str:
        beside = self.folder / "run.csv"
        beside.write_text(text)
        began = began or datetime.now(UTC).replace(year=2100)
        return sources.judge(
            self.predictions, sources.blob_of(beside), self.results, began, self.folder
        ).blind


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_predictions_committed_before_the_run_are_blind(checkout: Checkout) -> None:
    checkout.commit(checkout.predictions, "first")
    assert checkout.judge() == "yes"
    checkout.commit(checkout.results, "rows of that run")
    assert checkout.judge() == "yes"
    checkout.commit(checkout.predictions, "changed since")
    assert checkout.judge() == "yes"


def test_predictions_of_other_content_or_time_are_not_blind(checkout: Checkout) -> None:
    checkout.commit(checkout.predictions, "first")
    assert checkout.judge(text="changed, not committed") == "no"
    assert checkout.judge(began=datetime(2020, 1, 1, tzinfo=UTC)) == "no"
    assert sources.judge(checkout.predictions, None, checkout.results, datetime.now(UTC)).blind == "no"


def test_predictions_that_follow_results_are_not_blind(checkout: Checkout) -> None:
    checkout.commit(checkout.predictions, "zeroth")
    checkout.commit(checkout.results, "rows")
    checkout.commit(checkout.predictions, "first")
    assert checkout.judge() == "no"


def test_without_a_history_it_is_not_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    path = tmp_path / "predictions.csv"
    path.write_text("first")
    verdict = sources.judge(path, sources.blob_of(path), tmp_path / "none", datetime.now(UTC), tmp_path)
    assert verdict.blind == "undecided"
    assert "--stages summary" in verdict.why


def test_the_hash_is_gits_own(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes(b"a,b\n1,2\n")
    done = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True)
    assert sources.blob_of(path) == done.stdout.strip()


def accuracy_row(number: int, off_percent: float, **more: Any) -> dict[str, Any]:
    """A row measured at 1000 bytes of weights, predicted off by as many percent of them."""
    row: dict[str, Any] = dict.fromkeys(accuracy.COLUMNS)
    off = round(10 * off_percent)
    return row | {
        "name": f"some/{number}",
        "measured_peak_weights_bytes": 1000,
        "predicted_peak_weights_bytes": 1000 + off,
        "measured_peak_logits_bytes": 5,
        "predicted_peak_logits_bytes": 5,
        "predicted_peak_allocated_difference_bytes": off,
        "predicted_peak_allocated_difference_percent": off / 10,
        **more,
    }


@pytest.mark.parametrize(
    ("off", "met"),
    [
        ([0.5] * 19 + [-50.0], True),  # one in twenty may be anywhere
        ([0.5] * 18 + [-50.0, 40.0], False),
        ([1.2] * 20, False),
        ([1.0] * 18 + [3.0, -3.0], True),
    ],
)
def test_a_gate_is_a_median_and_a_95th_percentile(off: list[float], met: bool) -> None:
    rows = [accuracy_row(number, percent) for number, percent in enumerate(off)]
    assert summary.compared(rows, "predicted", "allocated")["met"] is met
    assert summary.compared(rows, "predicted", "reserved") == {
        "cells": 0,
        "gate_median_percent": 3.0,
        "gate_p95_percent": 8.0,
        "met": False,
        "worst": [],
    }


@pytest.mark.parametrize(
    ("status", "rows", "code", "words"),
    [
        ("ok", CELLS, 0, f"{CELLS} of {CELLS}"),
        ("ok", CELLS - 1, 5, f"{CELLS - 1} of {CELLS}"),
        ("oom", CELLS, 5, f"0 of {CELLS}"),
        ("error", CELLS, 5, f"0 of {CELLS}"),
        ("unsupported", CELLS, 3, f"0 of {CELLS}"),
    ],
)
def test_a_summary_of_cells_that_failed_or_are_missing_does_not_pass(
    status: str, rows: int, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Record(tmp_path, {"device": "h100"})
    off = {
        f"{lens}_peak_{kind}_difference_{unit}": 0
        for lens in accuracy.LENSES[:2]
        for kind in ("allocated", "reserved")
        for unit in ("bytes", "percent")
    }
    for cell in cells_of("cuda", "accuracy")[:rows]:
        row = {"name": cell.name, "digest": cell.digest, "status": status, "started": NOW}
        append_row(tmp_path / accuracy.NAME, accuracy.COLUMNS, row | (off if status == "ok" else {}))
    assert main(["--stages", "summary", "--out", str(tmp_path)]) == code
    assert capsys.readouterr().out.count(words) >= 4  # two lenses, two kinds of bytes


def test_the_worst_cell_names_the_component_that_differs() -> None:
    rows = [accuracy_row(0, 0.0), accuracy_row(1, -2.5), accuracy_row(2, 0.4)]
    worst, *_ = summary.compared(rows, "predicted", "allocated")["worst"]
    assert (worst["name"], worst["component"], worst["component_bytes"]) == ("some/1", "weights", -25)


def test_the_gpus_tests_need_no_plugin_of_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(
        "import pytest\n\n@pytest.mark.gpu\ndef test_one(): pass\n\ndef test_other(): assert False\n"
    )
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:timeout -p no:xdist")
    monkeypatch.setattr(suite, "gpu_test_files", lambda: [str(path)])
    assert suite.run(kit_on_cpu(tmp_path), 1.0) == []
    assert "1 passed, 1 deselected" in (tmp_path / suite.NAME).read_text()
    path.write_text("import pytest\n\n@pytest.mark.gpu\ndef test_one(): assert False\n")
    with pytest.raises(RuntimeError, match="ended with 1"):
        suite.run(kit_on_cpu(tmp_path), 1.0)


def test_without_pytest_the_tests_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "find_spec", lambda _: None)
    with pytest.raises(LeftOutError, match="gpu-wheels"):
        suite.run(kit_on_cpu(tmp_path), 1.0)
    assert not (tmp_path / suite.NAME).exists()


def test_wheels_are_found_before_the_kit_starts(tmp_path: Path) -> None:
    info = "marker-1.0.dist-info"
    files = {
        "sitecustomize.py": "import sys; print('from the wheel', file=sys.stderr)",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: marker\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(tmp_path / "marker-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    command = [str(ROOT / "benchmarks" / "gpu" / "run"), "--wheels", str(tmp_path), "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHON": sys.executable}
    )
    assert done.returncode == 0, done.stderr
    assert "from the wheel" in done.stderr
    assert "--limit-s" in done.stdout


def test_a_torn_line_of_a_history_is_recorded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = cells_of("cuda", "histories")[:2]
    path = tmp_path / histories.NAME
    whole = json.dumps({"name": first.name}) + "\n"
    path.write_text(whole + json.dumps({"name": second.name})[:-5])
    recorded: list[str] = []

    def child(command: list[str], *_: Any, **more: Any) -> subprocess.CompletedProcess[str]:
        recorded.append(more["text"])
        Path(command[-1]).write_text('{"device_traces": []}')
        return subprocess.CompletedProcess(command, 0, '{"max_allocated_bytes": 512}\n', "")

    monkeypatch.setattr(histories, "run_child", child)
    monkeypatch.setattr(histories, "cells_of", lambda *_: (first, second))
    kit = kit_on_cpu(tmp_path, device="cuda")
    assert histories.run(kit, 1.0) == histories.run(kit, 1.0) == []
    assert len(recorded) == 1
    assert path.read_text().startswith(whole)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["name"] for line in lines] == [first.name, second.name]
    assert lines[1]["measured"] == {"max_allocated_bytes": 512}


def test_a_history_is_what_the_replays_reader_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from mem_gpt_cli.allocator.history import read_history

    begun: list[dict[str, Any]] = []
    snapshot = {
        "segments": [],
        "device_traces": [[{"action": "alloc", "addr": 512, "size": 100, "stream": 0}]],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": ""},
    }
    memory = torch.cuda.memory
    monkeypatch.setattr(
        memory, "_record_memory_history", lambda *given, **more: begun.append({"given": given} | more)
    )
    monkeypatch.setattr(memory, "_snapshot", lambda: snapshot)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 512)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2048)
    cell = cells_of("cpu", "accuracy")[0]
    assert record(cell.cell.recipe, tmp_path / "history.json") == {
        "max_allocated_bytes": 512,
        "max_reserved_bytes": 2048,
    }
    assert begun[0]["given"] == ("all",)
    assert begun[0]["context"] is None
    (entry,) = read_history(tmp_path / "history.json").entries
    assert (entry.action, entry.address, entry.nbytes) == ("alloc", 512, 100)


@pytest.mark.parametrize(
    ("program", "arguments", "code", "words"),
    [
        ("run", ["--python", sys.executable, "--gpu", "h1000"], 2, "did you mean 'h100'"),
        ("on", ["--python", sys.executable, "--gpu", "h1000", "--", "-c", "pass"], 2, "did you mean 'h100'"),
        (
            "run",
            ["--python", sys.executable, "--cells", "nowhere.txt"],
            2,
            "--cells nowhere.txt: No such file",
        ),
        ("run", ["--python", "nowhere", "--set", "model.name=gpt2"], 2, "--python nowhere: there is no such"),
    ],
)
def test_a_mistake_in_a_rehearsal_is_told_in_a_sentence(
    program: str, arguments: list[str], code: int, words: str
) -> None:
    command = [sys.executable, "-m", f"benchmarks.rehearsal.{program}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rehearsal_needs_cuda_headers_and_gcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    with pytest.raises(EnvironmentUnavailableError, match="no CUDA headers"):
        build.cuda_headers(python)
    headers = tmp_path / "lib" / "python3.12" / "site-packages" / "nvidia" / "cu13" / "include"
    headers.mkdir(parents=True)
    (headers / "cuda_runtime_api.h").write_text("#error these are no headers")
    assert build.cuda_headers(python) == headers
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    if shutil.which("gcc"):
        with pytest.raises(EnvironmentUnavailableError, match="gcc cannot compile"):
            build.built(headers)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentUnavailableError, match="no gcc"):
        build.built(headers)
