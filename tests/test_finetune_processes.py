"""Two processes, started by accelerate's own launcher, train what one does; on the CPU, over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.finetune.processes import Processes

CLI = [sys.executable, "-m", "mem_gpt_cli", "finetune"]
OPTIONS = (
    *("--model", "memgpt-tiny", "--data", "sample", "--batch", "2", "--seq", "16", "--lr", "1e-3"),
    *("--set", "model.config.n_layer=2", "--set", "model.weights=random", "--set", "device.threads=1"),
    *("--set", "workload.clip_norm=0.5", "--set", "finetune.evaluate_tokens=32"),
    *("--set", "finetune.checkpoint_every=2"),
)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launched(out: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", free_port(), "-m", "mem_gpt_cli", "finetune"]
    return subprocess.run(
        [*launcher, *arguments(out)], capture_output=True, text=True, timeout=280, env=dict(os.environ)
    )


def both(out: Path, *more: str) -> list[tuple[tuple[str, str], int]]:
    """Two processes that meet by the variables that a launcher sets: what each ended with and wrote."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [*CLI, *arguments(out), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    return [(one.communicate(timeout=280), one.returncode) for one in started]


def arguments(out: Path) -> list[str]:
    return [*OPTIONS, "--steps", "3", "--out", str(out)]


def test_two_processes_take_the_steps_of_one_with_twice_the_micro_batches(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    done = launched(tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("3 steps of 4 x 16 tokens") == 1  # the first of them speaks for both
    assert cli.run(["finetune", *arguments(tmp_path / "one"), "--set", "workload.accumulate=2"]) == 0
    assert "model is in" in capfd.readouterr().out
    two, one = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, tensor in two.items():
        assert torch.allclose(tensor, one[name], atol=1e-5), name
    ((out, err), code), ((other_out, other_err), other_code) = both(tmp_path / "two", "--resume")
    assert (code, other_code) == (0, 0), err + other_err
    assert "model is in" in out
    assert other_out == ""


def test_sharded_training_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="accelerate was told to use FSDP"):
        Processes.join(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.join(cpu=True) == Processes()
