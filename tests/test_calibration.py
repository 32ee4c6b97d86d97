"""What a GPU takes beside torch's allocator: the file, which one is used, and how it is measured."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_nvml import GIB, MIB, FakeGpu, FakeNvml, FakeProcess

from mem_gpt_cli.cli.main import run
from mem_gpt_cli.devices.calibration import (
    SHIPPED,
    Calibration,
    calibration_of,
    calibration_path,
    read_calibrations,
    write_calibration,
)
from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.devices.nvml import Nvml
from mem_gpt_cli.doctor import measuring
from mem_gpt_cli.doctor.attempt import Attempt
from mem_gpt_cli.doctor.calibrate import STEPS, calibrate
from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError

H100 = find_gpu("h100")
CPU = torch.device("cpu")
SAMPLE = Calibration(
    gpu="h100",
    product=H100.product,
    date="2026-01-02T03:04:05+00:00",
    torch="2.11.0+cu130",
    cuda="13.0",
    driver="580.95.05",
    context_bytes=500 * MIB,
    library_bytes=200 * MIB,
    forward_workspace_bytes=32 * MIB,
    backward_workspace_bytes=32 * MIB,
    device_baseline_bytes=4 * MIB,
    libraries={"cublas": 100 * MIB},
    process_how="NVML, list of the processes",
)


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "calibration.json"
    write_calibration(SAMPLE, path)
    assert read_calibrations(path) == (SAMPLE,)
    assert json.loads(path.read_text())["schema_version"] == 1
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_same_build_is_replaced_and_another_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    again, other = replace(SAMPLE, context_bytes=1), replace(SAMPLE, torch="2.13.0+cu130")
    for each in (SAMPLE, other, again):
        write_calibration(each, path)
    assert read_calibrations(path) == (other, again)


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(SAMPLE, path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UsageError, match=r"cannot be written to .*calibration\.json: No space left on device"
    ):
        write_calibration(replace(SAMPLE, torch="3"), path)
    assert read_calibrations(path) == (SAMPLE,)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Invalid JSON: EOF"),
        ("[]", "Input should be an object"),
        ('{"schema_version": 2, "calibrations": []}', "schema_version: Input should be 1"),
        ('{"schema_version": 1}', "calibrations: Field required"),
        ('{"schema_version": 1, "calibrations": [3]}', r"calibrations\.0: Input should be an object"),
        (
            "WITH context_bytes=-1",
            r"calibrations\.0\.context_bytes: Input should be greater than or equal to 0",
        ),
        ("WITH library_bytes=null", r"calibrations\.0\.library_bytes: Input should be a valid integer"),
        ('WITH library_bytes="4"', r"calibrations\.0\.library_bytes: Input should be a valid integer"),
        ("WITH colour=3", r"calibrations\.0\.colour: Unexpected keyword argument"),
    ],
)
def test_a_malformed_file_is_one_clear_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "calibration.json"
    if text.startswith("WITH "):
        key, _, value = text.removeprefix("WITH ").partition("=")
        write_calibration(SAMPLE, path)
        document = json.loads(path.read_text())
        document["calibrations"][0][key] = json.loads(value)
        text = json.dumps(document)
    path.write_text(text)
    with pytest.raises(
        UsageError, match=rf"calibration\.json is no calibration file .*: {complaint}"
    ) as caught:
        read_calibrations(path)
    assert str(caught.value).endswith("move it away and run `memgpt doctor --calibrate`")
    assert "\n" not in str(caught.value)


def test_the_user_s_file_lies_where_settings_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMGPT_CALIBRATION", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/settings")
    assert calibration_path() == Path("/settings/memgpt/calibration.json")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert calibration_path() == Path("/home/ada/.config/memgpt/calibration.json")
    monkeypatch.setenv("MEMGPT_CALIBRATION", "~/here.json")
    assert calibration_path() == Path("/home/ada/here.json")


def test_without_any_file_nothing_is_known(tmp_path: Path) -> None:
    assert calibration_of(H100, path=tmp_path / "none.json", shipped=tmp_path / "none") is None


def test_what_is_shipped_can_be_read() -> None:
    assert all(len(read_calibrations(path)) == 1 for path in SHIPPED.glob("*.json"))
    assert SHIPPED.is_dir()


def test_the_calibration_of_the_installed_torch_wins_then_the_user_s_own(tmp_path: Path) -> None:
    own, shipped = tmp_path / "own.json", tmp_path / "shipped"
    here = version("torch").partition("+")[0]
    found = lambda: calibration_of(H100, path=own, shipped=shipped)  # noqa: E731
    newer = replace(SAMPLE, date="2027-01-01", torch="2.12.0")
    write_calibration(newer, shipped / "h100.json")
    assert found() == newer
    write_calibration(SAMPLE, own)
    assert found() == SAMPLE
    fitting = replace(SAMPLE, torch=f"{here}+cu130", date="2020-01-01")
    write_calibration(fitting, shipped / "h100-too.json")
    assert found() == fitting
    assert calibration_of(find_gpu("h100-pcie"), path=own, shipped=shipped) is None


def test_a_gpu_outside_the_catalogue_is_found_by_its_product(tmp_path: Path) -> None:
    strange = replace(SAMPLE, gpu="NVIDIA Imagined 1", product="NVIDIA Imagined 1")
    write_calibration(strange, tmp_path / "own.json")
    gpu = replace(H100, name="cuda:0", product="NVIDIA Imagined 1")
    assert calibration_of(gpu, path=tmp_path / "own.json", shipped=tmp_path) == strange


def nvml_of(gpu: FakeGpu) -> Any:
    return Nvml(FakeNvml(gpu)).by_index(0)


def test_a_process_is_measured_by_the_driver_s_list_where_there_is_one() -> None:
    gpu = FakeGpu(processes=[FakeProcess(os.getpid(), 700 * MIB), FakeProcess(1, 9 * GIB)], used=12 * GIB)
    size, how = measuring.process_bytes(nvml_of(gpu), 0)
    assert (size, how) == (700 * MIB, "NVML, list of the processes")


def test_in_a_container_a_process_is_the_difference_it_makes() -> None:
    size, how = measuring.process_bytes(nvml_of(FakeGpu(used=900 * MIB)), 400 * MIB)
    assert size == 500 * MIB
    assert "after the process began less before it" in how


@pytest.mark.parametrize("before", [None, 5])
def test_a_process_that_cannot_be_measured_is_never_0(before: int | None) -> None:
    hidden = frozenset({"memory", "memory_v2"}) if before else frozenset[str]()
    with pytest.raises(EnvironmentUnavailableError):
        measuring.process_bytes(nvml_of(FakeGpu(unsupported=hidden)), before)


def fake_machine(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu))  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_what_an_idle_device_uses_is_what_no_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(total=81559 * MIB, used=3 * GIB, processes=[FakeProcess(7, GIB), FakeProcess(8, GIB)])
    fake_machine(monkeypatch, gpu)
    assert measuring.idle(0) == {
        "product": "NVIDIA H100 80GB HBM3",
        "driver": "580.95.05",
        "total_bytes": 81559 * MIB,
        "used_bytes": GIB,
    }
    gpu.processes = [FakeProcess(7, None)]
    assert measuring.idle(0)["used_bytes"] is None


class CountingBooks:
    """An allocator that gains a workspace at the first product, and another in the first backward pass."""

    def __init__(self) -> None:
        self.account = iter([1000, 1000 + 32 * MIB, 1000 + 32 * MIB + 8 * MIB])

    def reserved(self) -> int:
        return 2 * MIB

    def allocated(self) -> int:
        return next(self.account)


def test_workspaces_are_what_stays_after_the_products() -> None:
    assert measuring.kept_by_products(CPU, CountingBooks()) == (32 * MIB, 8 * MIB)


@pytest.mark.parametrize("use", sorted(set(measuring.USES) - {"sdpa_efficient", "sdpa_cudnn"}))
def test_every_use_that_a_cpu_has_runs(use: str) -> None:
    measuring.USES[use](CPU)


def test_every_library_can_be_used() -> None:
    assert set(measuring.LIBRARIES) | {"training"} == set(measuring.USES)


def test_outside_is_the_process_less_what_torch_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_machine(monkeypatch, FakeGpu(processes=[FakeProcess(os.getpid(), 520 * MIB)]))
    monkeypatch.setattr(measuring, "_cuda", lambda _: (torch, CPU))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 20 * MIB)
    found = measuring.outside(0, "cublas")
    assert found["outside_bytes"] == 500 * MIB
    assert found["torch"] == torch.__version__


ANSWERS: dict[str, dict[str, Any]] = {
    "idle": {
        "product": H100.product,
        "driver": "580.95.05",
        "total_bytes": H100.total_bytes,
        "used_bytes": 4 * MIB,
    },
    "context": {"outside_bytes": 500 * MIB, "how": "listed", "torch": "2.11.0+cu130", "cuda": "13.0"},
    "training": {"outside_bytes": 700 * MIB},
    "cublas": {"outside_bytes": 600 * MIB},
    "sdpa_flash": {"outside_bytes": 499 * MIB},
    "sdpa_efficient": {"outside_bytes": 510 * MIB},
    "workspaces": {"forward_bytes": 32 * MIB, "backward_bytes": 16 * MIB},
}


def answering(function: str, _: float, *, index: int, what: str = "") -> Attempt:
    assert index == 3
    name = what or function.partition(":")[2]
    return (
        Attempt("ok", answer=ANSWERS[name]) if name in ANSWERS else Attempt("crashed", "ended by signal 11")
    )


def test_a_calibration_is_made_of_its_steps() -> None:
    steps: list[str] = []
    found = calibrate(3, 1, ask=answering, on_step=steps.append)
    assert steps == list(STEPS)
    assert (found.gpu, found.product, found.torch, found.cuda) == (
        "h100",
        H100.product,
        "2.11.0+cu130",
        "13.0",
    )
    assert (found.context_bytes, found.library_bytes) == (500 * MIB, 200 * MIB)
    assert (found.forward_workspace_bytes, found.backward_workspace_bytes) == (32 * MIB, 16 * MIB)
    # cuDNN crashed and is left out; a process that took less than the context alone adds nothing.
    assert found.libraries == {"cublas": 100 * MIB, "sdpa_flash": 0, "sdpa_efficient": 10 * MIB}


def test_a_needed_step_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ANSWERS, "training")
    with pytest.raises(
        EnvironmentUnavailableError, match="cannot be calibrated, a training step failed: ended by"
    ):
        calibrate(3, 1, ask=answering)


def test_a_figure_below_0_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process left the GPU while the context was measured by the device's memory."""
    path = tmp_path / "calibration.json"
    write_calibration(SAMPLE, path)
    before = path.read_text()
    monkeypatch.setitem(ANSWERS, "context", ANSWERS["context"] | {"outside_bytes": -3 * MIB})
    monkeypatch.setitem(calibrate.__kwdefaults__, "ask", answering)
    assert run(["doctor", "--calibrate", "--device", "cuda:3", "--out", str(path)]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"context_bytes was measured as {-3 * MIB}: another process" in printed.err
    assert path.read_text() == before


def test_without_a_gpu_the_command_ends_with_4_and_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pynvml.py").write_text(
        "import sys\nfrom fake_nvml import FakeNvml\nsys.modules[__name__] = FakeNvml(there=False)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run(["doctor", "--calibrate", "--out", str(tmp_path / "out.json")]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "the GPU cannot be calibrated" in printed.err
    assert not (tmp_path / "out.json").exists()


def test_only_a_gpu_of_this_machine_can_be_calibrated(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--calibrate", "--device", "h100"]) == 2
    assert "--device: 'h100' cannot be calibrated: write cuda or cuda:N" in capsys.readouterr().err
    assert run(["doctor", "--out", "x.json"]) == 2
    assert "--out belongs to --calibrate" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use")
def test_the_gpu_here_is_calibrated(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert run(["doctor", "--calibrate", "--out", str(path)]) == 0
    (found,) = read_calibrations(path)
    assert found.torch == torch.__version__
    assert found.product == torch.cuda.get_device_name()
    # A context is some hundred MiB; no library of torch's comes near a GiB when it loads its kernels lazily.
    assert 50 * MIB < found.context_bytes < 2 * GIB
    assert 0 < found.library_bytes < 2 * GIB
    assert found.forward_workspace_bytes > 0
    assert found.backward_workspace_bytes > 0
