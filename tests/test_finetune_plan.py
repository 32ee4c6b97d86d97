"""A fine-tune before it begins: what is predicted, what does not fit, and that a dry run refuses the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetuned import SIZES, Run

from mem_gpt_cli.cli import main as cli


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["finetune", *SIZES, *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_dry_run_predicts_and_holds_to_the_budget(run: Run, tmp_path: Path) -> None:
    small = ("--set", "model.config.n_layer=1", "--set", "model.weights=random")
    code, printed, _ = run("--dry-run", "--json", *small)
    assert code == 0
    report = json.loads(printed)
    assert report["lens"] == "trace"
    peak = report["peak"]["allocated_bytes"]
    assert run("--dry-run", "--budget", str(peak), *small)[0] == 0
    code, _, err = run("--dry-run", "--budget", str(peak - 1), *small)
    assert code == 3
    assert "it does not fit: " in err
    code, _, err = run("--out", str(tmp_path / "run"), "--budget", str(peak - 1), *small)
    assert code == 3
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_what_is_predicted_are_the_steps_that_run(run: Run, tmp_path: Path) -> None:
    """One pass over little data is one step, which has no optimizer state when its gradients are there."""
    (tmp_path / "little.txt").write_text("The people of these States. " * 12)
    little = ("--set", f"finetune.data={tmp_path / 'little.txt'}", "--set", "finetune.held_out=sample")
    one_pass = (*little, "--batch", "8", "--set", "finetune.steps=null", "--json")
    code, printed, err = run("--dry-run", *one_pass)
    assert code == 0, err
    predicted = json.loads(printed)["peak"]["allocated_bytes"]
    code, printed, _ = run("--out", str(tmp_path / "run"), *one_pass)
    account = json.loads(printed)
    assert account["steps"] == 1
    assert account["memory"]["predicted_bytes"] == predicted
    assert account["memory"]["measured_bytes"] == pytest.approx(predicted, rel=1e-3)


def test_tensors_are_held_to_what_the_machine_has_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mem_gpt_cli.finetune.prediction.host_bytes_left", lambda: 2**20)
    for how in (("--dry-run",), ("--out", str(tmp_path / "run"))):
        code, _, err = run(*how, "--set", "model.config.n_layer=1", "--set", "model.weights=random")
        assert code == 3
        assert "more than the 1.00 MiB that this machine has left" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--resume"], "--resume goes on with a run, and --dry-run runs nothing"),
        (["--set", "finetune.data=nosuch.txt"], "finetune.data: nosuch.txt does not exist"),
        (["--model", "gpt2", "--set", "finetune.data=nosuch.txt"], "finetune.data: nosuch.txt does not"),
        (["--set", "finetune.held_out=nosuch"], "finetune.held_out: nosuch does not exist"),
        (["--out", "tests"], "--out tests holds "),
    ],
)
def test_a_dry_run_passes_nothing_that_a_run_refuses(run: Run, arguments: list[str], reason: str) -> None:
    code, printed, err = run("--dry-run", *arguments)
    assert (code, printed) == (2, "")
    assert reason in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "workload.autocast=fp16"], "workload.autocast: gradients of fp16 products vanish"),
        (["--dtype", "fp16"], "model.dtype: gradients of fp16 weights vanish"),
        (["--set", "finetune.warmup_steps=3"], "finetune.warmup_steps: 3 steps of warm-up"),
        (["--seq", "2000"], "learned positions end at 1024"),
        (
            ["--set", "workload.steps=3"],
            "workload.steps: is how many steps a lens looks at: write finetune.st",
        ),
        (["--set", "finetune.keep_checkpoints=3"], "finetune.keep_checkpoints: means something beside"),
        (
            ["--set", "finetune.held_out=sample", "--set", "finetune.held_out_percent=9"],
            "finetune.held_out_percent: is of data, and finetune.held_out names",
        ),
        (["--lr", "nan"], "optimizer.lr: must be a number, not 'nan': write a finite one"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(
    run: Run, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    for how in (("--out", str(tmp_path / "run")), ("--dry-run",)):
        code, printed, err = run(*how, *arguments)
        assert (code, printed) == (2, "")
        assert reason in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--set", "finetune.data=null"], 2, "finetune.data: names no data"),
        (["--model", "gpt2"], 4, "has no tokenizer here"),
        (["--device", "h100"], 4, "use device=cpu, or --dry-run for a prediction"),
    ],
)
def test_what_a_dry_run_can_do_without_a_run_cannot(
    run: Run, tmp_path: Path, arguments: list[str], code: int, reason: str
) -> None:
    found, printed, err = run("--out", str(tmp_path / "run"), *arguments)
    assert (found, printed) == (code, "")
    assert reason in err
    assert not (tmp_path / "run").exists()
