"""A fine-tune that is stopped, killed or damaged goes on as if it never had been, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.finetune.checkpoints import is_whole
from mem_gpt_cli.finetune.interrupts import Interrupted
from mem_gpt_cli.finetune.job import Job, prepare
from mem_gpt_cli.finetune.processes import Processes
from mem_gpt_cli.finetune.state import random_states, set_random_states
from mem_gpt_cli.finetune.train import Account, train
from mem_gpt_cli.recipe import Recipe, recipe_of

STEPS = 5
SMALL: dict[str, Any] = {
    "model": {"name": "memgpt-tiny", "dropout": 0.1, "config": {"n_layer": 2}, "weights": "random"},
    "task": "training",
    "workload": {"batch": 2, "seq": 16},
    "optimizer": {"lr": 1e-3},
    "device": {"name": "cpu", "threads": 1},
    "finetune": {
        "data": "sample",
        "steps": STEPS,
        "warmup_steps": 1,
        "checkpoint_every": 2,
        "evaluate_tokens": 32,
    },
}


class Onlooker:
    """Watches a run, and stops it by Ctrl-C after some step: it is heard in the next one."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.lines = stop_after, list[dict[str, Any]]()
        self.notes = list[str]()

    def doing(self, what: str) -> None:
        pass

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def step(self, line: dict[str, Any], steps: int, levels: Any) -> None:
        del steps, levels
        self.lines.append(line)
        if line["step"] == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)


def small(**changes: Mapping[str, Any]) -> Recipe:
    sections = {**SMALL}
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return recipe_of(sections)


@pytest.fixture(scope="module", autouse=True)
def _unpredicted() -> Iterator[None]:
    """Predictions take most of the time of so small a run, and are no matter here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mem_gpt_cli.finetune.job.try_to_predict", lambda _: "not asked")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing stopped."""
    return weights(train(job(small(), tmp_path_factory.mktemp("whole")), Onlooker()))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its second step."""
    out = tmp_path_factory.mktemp("begun")
    with pytest.raises(Interrupted):
        train(job(small(), out), Onlooker(stop_after=1))
    return out


def job(recipe: Recipe, out: Path) -> Job:
    return prepare(recipe, out, Processes())


def weights(account: Account | None) -> dict[str, torch.Tensor]:
    assert account is not None
    (file,) = Path(account["result"]).glob("*.safetensors")
    return load_file(file)


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


OPTIONS: dict[str, dict[str, Mapping[str, Any]]] = {
    "adamw, padded": {"workload": {"accumulate": 2, "clip_norm": 0.5}, "finetune": {"packing": False}},
    "fused, bf16": {
        "optimizer": {"implementation": "fused"},
        "model": {"dtype": "bf16"},
        "finetune": {"schedule": "cosine"},
    },
    "sgd, qlora": {
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "adapters": {"kind": "qlora", "rank": 4},
    },
    "adafactor, lora": {
        "optimizer": {"name": "adafactor"},
        "adapters": {"kind": "lora", "rank": 4, "dropout": 0.1},
    },
    "adamw_8bit, checkpointed": {
        "optimizer": {"name": "adamw_8bit"},
        "checkpointing": {"policy": "full"},
        "loss": {"kind": "chunked", "chunk": 8},
    },
    "lion_8bit, lsh": {
        "optimizer": {"name": "lion_8bit"},
        "attention": {"backend": "lsh"},
        "model": {"dropout": 0.0},
    },
    "galore": {"optimizer": {"name": "galore", "rank": 8, "update_every": 3}},
}
"""Each optimizer and each way of training once: what is kept of one has nothing to do with the other."""


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Ctrl-C after step 2 ends the run after step 3, where no checkpoint is planned; then to the end."""
    recipe = small(**OPTIONS[name])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    onlooker = Onlooker()
    expected = weights(train(job(recipe, whole), onlooker))
    with pytest.raises(Interrupted, match=f"step 3 of {STEPS}"):
        train(job(recipe, parts), Onlooker(stop_after=2))
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    account = train(job(recipe, parts), Onlooker(), resume=True)
    assert account is not None
    assert account["resumed_from"] == 3
    assert alike(weights(account), expected)
    assert [line["loss"] for line in logged(parts)] == [line["loss"] for line in onlooker.lines]
    assert [line["lr"] for line in logged(parts)] == [line["lr"] for line in onlooker.lines]


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from mem_gpt_cli.finetune import run, state
from mem_gpt_cli.finetune.job import prepare
from mem_gpt_cli.finetune.processes import Processes
from mem_gpt_cli.finetune.train import train
from mem_gpt_cli.recipe import recipe_of
import transformers.optimization

import mem_gpt_cli.finetune.job as job_module
job_module.try_to_predict = lambda recipe: "not asked"
for line in sys.stdin:
    where, number, sections, out, resume = json.loads(line)
    out = Path(out)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Onlooker:
    def doing(self, what):
        if what == where:
            die()
    def step(self, line, steps, levels):
        if where == "step" and line["step"] == number:
            die()
    def note(self, sentence):
        pass

save, saved = state.torch.save, []
def tear(value, file):
    saved.append(file)
    if where == "checkpoint" and len(saved) == number:
        file.write(b"half of it")
        file.flush()
        die()
    save(value, file)
state.torch.save = tear
train(prepare(recipe_of(sections), out, Processes()), Onlooker(), resume=resume)
os._exit(0)
"""
"""Trains in a process of its own, which dies where it is told to, for each line: torch is imported once."""


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Before the first checkpoint, within the second, and while the result is saved."""
    out = tmp_path / "killed"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as starts:
        asked, ended = starts.stdin, starts.stdout
        assert asked is not None
        assert ended is not None

        def killed(where: str, number: int, *, resume: bool) -> int:
            print(json.dumps([where, number, SMALL, str(out), resume]), file=asked, flush=True)
            return int(ended.readline())

        assert killed("step", 1, resume=False) == -signal.SIGKILL
        assert not (out / "checkpoints").exists()
        assert killed("checkpoint", 2, resume=True) == -signal.SIGKILL
        assert [path.name for path in (out / "checkpoints").iterdir() if is_whole(path)] == ["step-00000002"]
        assert len(logged(out)) == 4
        assert killed("saving", 0, resume=True) == -signal.SIGKILL
    account = train(job(small(), out), Onlooker(), resume=True)
    assert account is not None
    assert account["resumed_from"] == STEPS
    assert alike(weights(account), whole)
    assert [line["step"] for line in logged(out)] == [*range(1, STEPS + 1)]
    hidden = {path.name for path in out.rglob(".*")}
    assert hidden <= {".lock"}


def test_a_damaged_checkpoint_is_passed_over_and_old_ones_go(
    whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    recipe = small(finetune={"checkpoint_every": 1, "keep_checkpoints": 2})
    with pytest.raises(Interrupted):
        train(job(recipe, tmp_path / "run"), Onlooker(stop_after=3))
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000004"]
    (folder / "step-00000004" / "state.pt").write_bytes(b"torn")
    account = train(job(recipe, tmp_path / "run"), Onlooker(), resume=True)
    assert account is not None
    assert account["resumed_from"] == 3
    assert alike(weights(account), whole)


def test_a_run_that_is_over_says_so_again_and_trains_nothing(tmp_path: Path) -> None:
    account = train(job(small(), tmp_path), Onlooker())
    onlooker = Onlooker()
    assert train(job(small(), tmp_path), onlooker, resume=True) == account
    assert onlooker.lines == []


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"optimizer": {"lr": 2e-3}}, "optimizer.lr was 0.001 and is 0.002"),
        ({"finetune": {"steps": 6}}, "finetune.steps was 5 and is 6"),
        ({"workload": {"seed": 1}}, "workload.seed was 0 and is 1"),
        ({"finetune": {"held_out_percent": 20}}, "finetune.held_out_percent was 5.0 and is 20.0"),
    ],
)
def test_another_run_is_refused(changes: dict[str, Any], difference: str, begun: Path) -> None:
    with pytest.raises(UsageError, match="was begun otherwise") as caught:
        train(job(small(**changes), begun), Onlooker(), resume=True)
    assert difference in str(caught.value)


def test_a_run_is_gone_on_with_only_when_that_is_asked(begun: Path) -> None:
    with pytest.raises(UsageError, match="holds a run: add --resume"):
        train(job(small(), begun), Onlooker())


def test_other_data_is_refused_and_the_same_under_another_name_is_not(tmp_path: Path) -> None:
    data, copy = tmp_path / "data.txt", tmp_path / "copy.txt"
    data.write_text("We, the people of these States. " * 400)
    recipe = small(finetune={"data": str(data)})
    with pytest.raises(Interrupted):
        train(job(recipe, tmp_path / "run"), Onlooker(stop_after=1))
    copy.write_text(data.read_text())
    data.write_text("They, the people of those States. " * 400)
    with pytest.raises(UsageError, match=r"was begun otherwise: data\.training was"):
        train(job(recipe, tmp_path / "run"), Onlooker(), resume=True)
    moved = small(finetune={"data": str(copy), "checkpoint_every": 1})
    account = train(job(moved, tmp_path / "run"), Onlooker(), resume=True)
    assert account is not None
    assert account["steps"] == STEPS


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    one = job(small(), tmp_path)
    with one.folder.alone(), pytest.raises(UsageError, match="another process trains here"):
        train(job(small(), tmp_path), Onlooker())


def test_random_numbers_go_on_where_they_stood(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(1))]

    draw()
    torch.save(random_states(torch.device("cpu")), tmp_path / "states.pt")
    expected = draw()
    draw()
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    set_random_states(states, torch.device("cpu"))
    assert draw() == expected
