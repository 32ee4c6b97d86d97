"""A fine-tune that meets a full disk, numbers that are none, or damaged files ends in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.report.whole_folder import whole_folder

Run = Callable[..., tuple[int, str, str]]
STEPS = 4
FLAGS = (
    *("finetune", "--data", "sample", "--batch", "2", "--seq", "16", "--steps", str(STEPS)),
    *("--set", "model.config.n_layer=1", "--set", "model.weights=random", "--set", "device.threads=1"),
    *("--set", "finetune.checkpoint_every=2", "--set", "finetune.evaluate_tokens=32", "--lr", "1e-3"),
)


@pytest.fixture(scope="module", autouse=True)
def _unpredicted() -> Iterator[None]:
    """Predictions take most of the time of so small a run, and are no matter here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mem_gpt_cli.finetune.job.try_to_predict", lambda _: "not asked")
        yield


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run([*FLAGS, *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, with checkpoints after steps 2 and 4."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert cli.run([*FLAGS, "--out", str(out)]) == 0
    return out


@pytest.fixture
def over(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def halfway(over: Path) -> Path:
    """The run after its second step."""
    (over / "result.json").unlink()
    shutil.rmtree(over / "model")
    shutil.rmtree(over / "checkpoints" / "step-00000004")
    return over


def trained(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def alike(one: Path, other: Path) -> bool:
    a, b = trained(one), trained(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


FULL = """
import json, os, resource, sys
from mem_gpt_cli.cli import main
from mem_gpt_cli.finetune import job
import mem_gpt_cli.finetune.train

job.try_to_predict = lambda recipe: "not asked"
for limit, arguments in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os._exit(main.run(arguments))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""Runs the command where files may not grow beyond a limit, for each limit: torch is imported once."""


def test_a_disk_that_is_full_ends_the_run_in_a_sentence_and_leaves_what_was_there(
    run: Run, finished: Path, halfway: Path
) -> None:
    """Found out by safetensors, and by torch."""
    size = (finished / "model" / "model.safetensors").stat().st_size
    command = [*FLAGS, "--out", str(halfway), "--resume"]
    ended = subprocess.run(
        [sys.executable, "-c", FULL],
        input=json.dumps([(size // 2, command), (size * 3 // 2, command)]),
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split() == ["4", "4"]
    last = halfway / "checkpoints" / "step-00000004"
    said = [line for line in ended.stderr.splitlines() if "error" in line]
    sentence = f"memgpt: error: {last} cannot be written: File too large"
    assert len(said) == 2
    assert all(line.startswith(sentence) for line in said), ended.stderr
    assert [path.name for path in (halfway / "checkpoints").iterdir()] == ["step-00000002"]
    assert run("--out", str(halfway), "--resume")[0] == 0
    assert alike(halfway, finished)


def test_what_is_saved_may_be_read_by_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "a") as partial:
            save_file({"a": torch.ones(1)}, partial / "a.safetensors")
            (partial / "below").mkdir()
            (partial / "below" / "b").write_text("b")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"a": 0o750, "a.safetensors": 0o640, "below": 0o750, "b": 0o640}
