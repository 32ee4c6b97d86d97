"""A fine-tune that meets a full disk, numbers that are none, or damaged files ends in a sentence."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.finetune.checkpoints import is_whole
from mem_gpt_cli.finetune.evaluate import Evaluation
from mem_gpt_cli.finetune.train import refuse_at_once
from mem_gpt_cli.recipe import recipe_of
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


@pytest.mark.parametrize(
    ("file", "place"),
    [("state.pt", 5000), ("trainable.safetensors", 40), ("place.json", 2), ("manifest.json", 2)],
)
def test_a_checkpoint_with_other_bytes_is_passed_over(
    file: str, place: int, run: Run, finished: Path, halfway: Path
) -> None:
    """Of the same size, so that only its digest tells: the run goes on from the one before it."""
    shutil.copytree(
        finished / "checkpoints" / "step-00000004", newest := halfway / "checkpoints" / "step-00000004"
    )
    content = bytearray((newest / file).read_bytes())
    content[place : place + 9] = bytes(len(content[place : place + 9]))
    (newest / file).write_bytes(content)
    code, printed, err = run("--out", str(halfway), "--resume", "--json")
    assert code == 0, err
    account = strict(printed)
    assert account["resumed_from"] == 2
    assert f"{newest} was damaged, and is passed over" in account["notes"]
    assert f"warning: {newest} was damaged" in err
    assert alike(halfway, finished)
    assert is_whole(newest)


def strict(text: str) -> dict[str, Any]:
    """A JSON object, in which NaN and Infinity are no words."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


@pytest.mark.parametrize("steps", [2, 4])
def test_the_account_does_not_hang_on_the_log(steps: int, run: Run, finished: Path, halfway: Path) -> None:
    """Lost midway, and with the checkpoint at the last step."""
    if steps == 4:
        shutil.copytree(finished / "checkpoints" / "step-00000004", halfway / "checkpoints" / "step-00000004")
    (halfway / "log.jsonl").unlink()
    code, printed, err = run("--out", str(halfway), "--resume", "--json")
    assert code == 0, err
    account, whole = strict(printed), strict((finished / "result.json").read_text())
    assert account["resumed_from"] == steps
    for key in ("steps", "loss", "data"):
        assert account[key] == whole[key]
    assert account["speed"]["tokens"] == whole["speed"]["tokens"]
    (note,) = [note for note in account["notes"] if "log.jsonl" in note]
    assert f"holds 0 of the {steps} steps so far" in note


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("log.jsonl", '{"x": 1}\n', "log.jsonl:1: is no step of a run: delete the file"),
        ("before.json", "{}", "before.json is not as a run left it (evaluation): delete it, and --resume"),
        (
            "before.json",
            '{"evaluation": {"perplexity": "1", "loss": 1.0, "tokens": 3}}',
            "before.json is not as a run left it (evaluation.perplexity): delete it",
        ),
    ],
)
def test_a_small_file_that_was_spoilt_is_named_with_the_mend(
    file: str, content: str, said: str, run: Run, halfway: Path
) -> None:
    (halfway / file).write_text(content)
    code, printed, err = run("--out", str(halfway), "--resume")
    assert (code, printed) == (2, "")
    assert f"memgpt: error: {halfway}/{said}" in err
    (halfway / file).unlink()
    assert run("--out", str(halfway), "--resume")[0] == 0


def test_a_result_that_was_spoilt_is_made_anew(run: Run, finished: Path, over: Path) -> None:
    whole = strict((over / "result.json").read_text())
    for spoilt, where in (({}, "schema_version"), (whole | {"recipe": {}}, "recipe")):
        (over / "result.json").write_text(json.dumps(spoilt))
        code, _, err = run("--out", str(over), "--resume")
        assert code == 2
        assert f"error: {over}/result.json is not as a run left it ({where}): delete it, and --resume" in err
    (over / "result.json").unlink()
    assert run("--out", str(over), "--resume")[0] == 0
    assert strict((over / "result.json").read_text())["loss"] == whole["loss"]
    assert alike(over, finished)


OVERFLOWING = (
    *("--lr", "3e38", "--set", "optimizer.name=sgd", "--set", "optimizer.weight_decay=1000"),
    *("--set", "finetune.schedule=constant"),
)
"""The first step's loss is a number, and the weights after it are not: weight decay makes each gradient
larger than the 1.1 that 3e38 may be multiplied by.
"""


def test_weights_that_are_no_numbers_are_neither_kept_nor_saved(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, err = run("--out", str(out), *OVERFLOWING, "--steps", "1", "--json")
    assert (code, printed) == (3, "")
    assert "holds values that are no numbers after step 1: lower optimizer.lr" in err
    assert "begin anew in another --out" in err
    assert not (out / "checkpoints").exists()
    assert not (out / "model").exists()
    assert len((out / "log.jsonl").read_text().splitlines()) == 1


def test_what_is_not_finite_is_null_in_json() -> None:
    assert math.isnan(Evaluation(math.nan, 3).perplexity)
    assert Evaluation(800.0, 3).perplexity == math.inf
    assert Evaluation(math.nan, 3).as_json() == {"perplexity": None, "loss": None, "tokens": 3}
    assert Evaluation(800.0, 3).as_json() == {"perplexity": None, "loss": 800.0, "tokens": 3}


def test_an_account_without_perplexities_is_told(run: Run, over: Path) -> None:
    """As a run leaves it whose loss is a number that has no exponential."""
    account = strict((over / "result.json").read_text())
    account["perplexity"] |= {"before": None, "after": None}
    (over / "result.json").write_text(json.dumps(account))
    code, printed, err = run("--out", str(over), "--resume")
    assert code == 0, err
    assert "no number -> no number" in printed


def test_what_needs_no_data_is_refused_before_any_is_read(run: Run, over: Path) -> None:
    """The data is not even there: had it been looked for, that would be the mistake."""
    tmp_path = over.parent
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    for out, more, said in (
        ("file", (), "file is a file: name a folder"),
        ("file/run", (), "file is no folder: name another place"),
        ("taken", (), "holds 'notes.txt', and no run"),
        ("run", (), "holds a run: add --resume"),
        ("run", ("--resume", "--lr", "2e-3"), "was begun otherwise: optimizer.lr was 0.001 and is 0.002"),
        ("new", ("--csv", str(tmp_path / "other.csv")), "has other columns than this command writes"),
        ("new", ("--csv", str(tmp_path / "file" / "a.csv")), "file is no folder: name another place"),
    ):
        code, printed, err = run("--out", str(tmp_path / out), "--data", "nowhere.txt", *more)
        assert (code, printed) == (2, "")
        assert said in err
    assert not (tmp_path / "new").exists()
    (tmp_path / "torn.csv").write_text("schema_ver")
    refuse_at_once(recipe_of({}), tmp_path / "new", csv=tmp_path / "torn.csv")
