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

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.finetune.processes import Processes

OPTIONS = (
    *("--model", "memgpt-tiny", "--data", "sample", "--batch", "2", "--seq", "16", "--lr", "1e-3"),
    *("--set", "model.config.n_layer=2", "--set", "model.weights=random", "--set", "device.threads=1"),
    *("--set", "workload.clip_norm=0.5", "--set", "finetune.evaluate_tokens=32"),
    *("--set", "finetune.checkpoint_every=2"),
)


def launched(out: Path, steps: int, *more: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(port), "-m"]
    return train(launcher, out, steps, *more)


def train(launcher: list[str], out: Path, steps: int, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        *launcher,
        "mem_gpt_cli",
        "finetune",
        *OPTIONS,
        "--steps",
        str(steps),
        "--out",
        str(out),
        *more,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=dict(os.environ))


def test_two_processes_take_the_steps_of_one_with_twice_the_micro_batches(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    done = launched(tmp_path / "two", 3)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("3 steps of 4 x 16 tokens") == 1  # the first of them speaks for both
    alone = train([sys.executable, "-m"], tmp_path / "one", 3, "--set", "workload.accumulate=2")
    assert alone.returncode == 0, alone.stderr
    two, one = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, tensor in two.items():
        assert torch.allclose(tensor, one[name], atol=1e-5), name
    again = launched(tmp_path / "two", 3, "--resume")
    assert again.returncode == 0, again.stderr
    assert "model is in" in again.stdout


def test_sharded_training_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="accelerate was told to use FSDP"):
        Processes.join(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.join(cpu=True) == Processes()
