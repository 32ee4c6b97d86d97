"""The profile's way over a GPU, on a fake one: the order of its passes, its figures, what may go wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import threading
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mem_gpt_cli.allocator.history import read_history
from mem_gpt_cli.allocator.sizes import round_up
from mem_gpt_cli.bench import cell
from mem_gpt_cli.cli.main import run
from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError
from mem_gpt_cli.profile import per_token, profile
from mem_gpt_cli.profile import run as profile_run
from mem_gpt_cli.profile.device import AllocatorCount, CudaDevice, find_device
from mem_gpt_cli.profile.exhaustion import exhausted, ran_out_of_memory
from mem_gpt_cli.recipe.schema import Device, Recipe
from mem_gpt_cli.report import PHASES, MemoryReport
from mem_gpt_cli.report.json import from_dict, to_dict
from mem_gpt_cli.report.ladder import ladder
from tests.fake_cuda import CONTEXT, CUBLAS, NAME, OTHERS, FakeCuda, fake_cuda
from tests.fake_nvml import GIB, MIB, FakeGpu, FakeNvml, FakeProcess
from tests.profiled import GPT2, INFERENCE, LLAMA, small_recipe

STEPS = {"inference": 6, "training": 7}


def cuda_recipe(task: str, model: dict[str, Any] = LLAMA, **sections: Any) -> Recipe:
    return small_recipe(model, task, device={"name": "cuda", "threads": 1}, **sections)


@dataclass
class Measured:
    """A run on a fake GPU: the report, the GPU and the phases in the order in which they began."""

    report: MemoryReport
    cuda: FakeCuda
    progress: list[tuple[str, int, int, int | None]]


def measure(
    task: str, nvml: FakeNvml | None = None, cuda: FakeCuda | None = None, **options: Any
) -> Measured:
    progress: list[tuple[str, int, int, int | None]] = []
    with fake_cuda(cuda or FakeCuda(), nvml) as gpu:
        report = profile(cuda_recipe(task), progress=lambda *step: progress.append(step), **options)
    return Measured(report, gpu, progress)


@cache
def measured(task: str) -> Measured:
    return measure(task)


TASKS = pytest.mark.parametrize("task", ["inference", "training"])


@TASKS
def test_the_recorded_pass_comes_first_and_the_bare_one_from_an_empty_allocator(task: str) -> None:
    found = measured(task)
    assert found.cuda.calls == ["clear cuBLAS", "empty cache", "reset counters"]
    steps = STEPS[task]
    assert [live is None for *_, live in found.progress] == steps * [False] + steps * [True]
    assert [step for _, step, _, _ in found.progress] == list(range(1, 2 * steps + 1))
    assert {of for _, _, of, _ in found.progress} == {2 * steps}
    assert found.report.details["start_reserved_bytes"] == 0
    assert found.report.warnings == ()


def test_the_bare_pass_is_run_without_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotToBeUsed:
        """Any use breaks: a warm-up would leave its blocks in the allocator."""

    monkeypatch.setattr(profile_run, "WARM_UP_TOKENS", NotToBeUsed())
    assert measure("inference").report.allocated_bytes > 0
    with pytest.raises(TypeError, match="NotToBeUsed"):
        profile(small_recipe(LLAMA, "inference"))  # on CPU there is one


@TASKS
def test_each_phase_has_the_whole_ladder(task: str) -> None:
    report, cuda = measured(task).report, measured(task).cuda
    assert [phase.name for phase in report.phases] == list(PHASES[report.task])
    reserved = [phase.reserved_bytes or 0 for phase in report.phases]
    assert reserved == sorted(reserved)
    for phase in report.phases:
        assert phase.peak_allocated_bytes % 512 == 0
        assert phase.reserved_bytes is not None
        assert phase.peak_allocated_bytes <= phase.reserved_bytes
        # The driver is asked once more at the end of each phase, so no phase is too short for it.
        assert phase.process_bytes == phase.reserved_bytes + CONTEXT
        assert phase.device_bytes == phase.process_bytes + OTHERS
        assert phase.duration_s
        assert report.details["requested_bytes"][phase.name] < phase.peak_allocated_bytes
    assert report.reserved_bytes == reserved[-1] == cuda.reserved.now
    assert set(report.provenance.values()) == {"measured"}
    assert from_dict(to_dict(report)) == report


@TASKS
def test_what_no_tensor_shows_is_workspace(task: str) -> None:
    report = measured(task).report
    assert all(sum(phase.components.values()) == phase.peak_allocated_bytes for phase in report.phases)
    first, second = report.phases[0].components, report.phases[1].components
    assert second["workspace"] == CUBLAS
    assert first["weights"] == second["weights"] >= 4 * report.model.parameters
    assert all(count % 512 == 0 for phase in report.phases for count in phase.components.values())


def test_passes_that_differ_are_told_and_no_component_is_below_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare pass's count in one phase is less than the tensors of the recorded one."""
    count = CudaDevice.count
    usual = measured("inference").report.phases[1]

    def less(device: CudaDevice) -> AllocatorCount:
        told = count(device)
        if told.allocated_bytes != usual.peak_allocated_bytes:
            return told
        return replace(told, allocated_bytes=MIB // 2)

    monkeypatch.setattr(CudaDevice, "count", less)
    report = measure("inference").report
    phase = report.phases[1]
    assert min(phase.components.values()) >= 0
    assert phase.peak_allocated_bytes == sum(phase.components.values()) > MIB // 2
    differ = phase.peak_allocated_bytes - MIB // 2
    assert any(f"prefill: the two passes differ by {differ:,} B" in warning for warning in report.warnings)
    assert report.phases[0] == replace(
        measured("inference").report.phases[0], duration_s=report.phases[0].duration_s
    )


@TASKS
def test_the_ladder_says_how_each_step_was_got(task: str) -> None:
    report = measured(task).report
    allocated, reserved, process, device = ladder(report)
    assert (allocated.bytes, allocated.difference_bytes) == (report.allocated_bytes, None)
    assert "torch's allocator" in allocated.how
    assert reserved.difference_bytes == reserved.bytes - allocated.bytes  # type: ignore[operator]
    assert (process.difference_bytes, process.above) == (CONTEXT, "reserved")
    assert (device.difference_bytes, device.above) == (OTHERS, "process")
    assert "NVML, version 2" in device.how
    assert "sampled every" in device.how
    assert to_dict(report)["ladder"][3]["bytes"] == report.device_bytes


def test_the_board_rides_along() -> None:
    gpu = FakeCuda()
    nvml = FakeNvml(
        gpu.nvml_gpu(power_mw=[100_000, 300_000], utilization=[50, 100], temperature=[40, 66, 50])
    )
    board = measure("training", nvml, gpu).report.telemetry
    assert board is not None
    assert board.samples > 3
    assert (board.power_max_w, board.temperature_max_c) == (300, 66)
    assert board.power_mean_w is not None
    assert board.utilization_mean_percent is not None
    assert 200 < board.power_mean_w < 300
    assert 75 < board.utilization_mean_percent < 100
    assert board.interval_ms is not None
    assert board.interval_ms >= 9


def test_what_the_process_held_before_is_said() -> None:
    cuda = FakeCuda()
    with cuda:
        held = torch.empty(3 * MIB, dtype=torch.uint8)
    report = measure("inference", cuda=cuda).report
    assert held.nbytes == 3 * MIB
    assert report.details["start_reserved_bytes"] == 4 * MIB
    assert "4.00 MiB were reserved before" in report.warnings[0]


def test_a_pass_for_memory_alone_is_two_passes_on_a_gpu() -> None:
    found = measure("inference", passes="memory")
    assert {of for _, _, of, _ in found.progress} == {2 * STEPS["inference"]}
    assert found.report.reserved_bytes == measured("inference").report.reserved_bytes


def test_the_timeline_ends_with_the_run_and_not_with_its_clearing_away(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    report = measure("inference", timeline=path).report
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    held = {name: int(rows[-1][f"{name}_bytes"]) for name in ("weights", "kv_cache")}
    assert held["weights"] == report.phases[0].components["weights"]
    assert held["kv_cache"] > 0


def test_tokens_are_followed_on_a_gpu_too() -> None:
    with fake_cuda(FakeCuda()):
        tokens = per_token(cuda_recipe("inference"))
    tensors, position = 2 * 3, 2 * 16 * 4 * INFERENCE["batch"]
    assert [token.kv_cache_bytes for token in tokens.with_cache] == [
        tensors * round_up((96 + step) * position, 512) for step in range(5)
    ]
    assert {token.kv_cache_bytes for token in tokens.without_cache} == {0}


# -- what goes wrong


def samplers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "memgpt-sampler"]


@pytest.mark.parametrize("room", ["recorded", "bare"])
def test_out_of_memory_leaves_as_torchs_own(room: str, tmp_path: Path) -> None:
    """The bare pass dies where the recorded one just fits: its history is written all the same."""
    cuda = FakeCuda(limit=4 * MIB if room == "recorded" else float("inf"))

    def no_more(phase: str, step: int, *_: Any) -> None:
        if room == "bare" and step > STEPS["training"] and phase == "backward":
            cuda.limit = 0

    path = tmp_path / "history.json"
    nvml = FakeNvml(cuda.nvml_gpu())
    with fake_cuda(cuda, nvml), pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        profile(cuda_recipe("training"), progress=no_more, history=path)
    assert samplers() == []
    assert nvml.opened == 0
    assert path.exists() is (room == "bare")


def test_out_of_memory_is_a_row_with_its_phase() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    with fake_cuda(FakeCuda(limit=4 * MIB)):
        cell.run_cell(cuda_recipe("training"), ("profile",), lambda event, facts: told.append((event, facts)))
    assert told[-1][0] == "failed"
    assert told[-1][1]["status"] == "oom"
    assert "OutOfMemoryError" in told[-1][1]["error"]
    assert told[-2][0] == "phase"


@pytest.mark.parametrize("calls", [0, 40])
def test_a_lost_gpu_ends_the_samples_and_not_the_report(calls: int) -> None:
    cuda = FakeCuda()
    report = measure("training", FakeNvml(cuda.nvml_gpu(lost_after=calls)), cuda).report
    assert samplers() == []
    assert report.reserved_bytes == measured("training").report.reserved_bytes
    if calls == 0:  # it was gone before the first sample
        assert (report.process_bytes, report.telemetry) == (None, None)
        assert "lost" in str(report.sources["process_bytes"].why_not)
        assert "mem_get_info" in report.sources["device_bytes"].how
        return
    assert any("GPU is lost" in warning for warning in report.warnings)
    assert report.process_bytes is not None
    assert report.process_bytes > CONTEXT
    assert report.provenance["process_bytes"] == "measured"
    assert report.phases[-1].process_bytes is None
    assert 0 not in [phase.process_bytes for phase in report.phases]
    assert from_dict(to_dict(report)) == report


def no_process(nvml: FakeNvml, cuda: FakeCuda | None = None) -> MemoryReport:
    report = measure("inference", nvml, cuda).report
    assert report.process_bytes is None
    assert [phase.process_bytes for phase in report.phases] == [None] * 3
    assert report.provenance["process_bytes"] == "unavailable"
    device = ladder(report)[3]
    assert (device.above, device.difference_bytes) == ("reserved", CONTEXT + OTHERS)
    return report


def test_without_nvml_cuda_tells_of_the_device_alone() -> None:
    report = no_process(FakeNvml(there=False))
    assert "NVML Shared Library Not Found" in str(report.sources["process_bytes"].why_not)
    assert "mem_get_info" in report.sources["device_bytes"].how
    assert report.telemetry is None


def test_in_a_container_without_process_figures() -> None:
    cuda = FakeCuda()
    report = no_process(FakeNvml(cuda.nvml_gpu(processes=[FakeProcess(os.getpid() + 1, 5 * GIB)])), cuda)
    assert "is not among the 1" in str(report.sources["process_bytes"].why_not)
    assert "version 2" in report.sources["device_bytes"].how


def test_another_process_of_the_same_number_is_not_taken_for_this_one() -> None:
    cuda = FakeCuda()
    report = no_process(FakeNvml(cuda.nvml_gpu(processes=[FakeProcess(os.getpid(), MIB)])), cuda)
    assert "less than" in str(report.sources["process_bytes"].why_not)


def test_unified_memory_is_told_by_cuda() -> None:
    cuda = FakeCuda()
    silent = frozenset({"memory", "memory_v2", "processes", "power"})
    report = no_process(FakeNvml(cuda.nvml_gpu(unsupported=silent)), cuda)
    assert "Not Supported" in str(report.sources["process_bytes"].why_not)
    assert report.telemetry is not None
    assert (report.telemetry.power_max_w, report.telemetry.utilization_mean_percent) == (None, 90)


def test_a_mig_instance_is_measured_for_itself() -> None:
    cuda = FakeCuda()
    instance = cuda.nvml_gpu(uuid="MIG-b", name=f"{NAME} MIG 1g.10gb")
    report = measure("inference", FakeNvml(FakeGpu(instances=[instance], used=50 * GIB)), cuda).report
    assert report.device_bytes == cuda.device_bytes()
    assert "MIG instance" in report.sources["device_bytes"].how
    assert report.telemetry is not None
    assert report.telemetry.utilization_mean_percent is None
    assert report.telemetry.power_max_w == 250


def test_of_several_gpus_the_right_one_is_sampled() -> None:
    cuda = FakeCuda()
    other = FakeGpu(uuid="GPU-other", bus_id="00000000:01:00.0", used=70 * GIB)
    report = measure("inference", FakeNvml(other, cuda.nvml_gpu()), cuda).report
    assert report.device_bytes == cuda.device_bytes()
    assert other.calls == []


# -- history


def test_the_history_is_of_the_bare_pass(tmp_path: Path) -> None:
    path = tmp_path / "history.json.gz"
    found = measure("inference", history=path)
    assert found.cuda.calls == [
        "clear cuBLAS",
        "empty cache",
        "record all",
        "reset counters",
        "snapshot",
        "record None",
    ]
    assert [str(entry.action) for entry in read_history(path).entries] == ["segment_alloc", "alloc"]


def test_a_history_that_cannot_be_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--history records CUDA's allocator"):
        profile(small_recipe(GPT2, "inference"), history=tmp_path / "x.json")
    with pytest.raises(UsageError, match="no folder"):
        profile(cuda_recipe("inference"), history=tmp_path / "not" / "there.json")


# -- the command


def test_the_command_answers_with_the_ladder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(cuda_recipe("inference").model_dump(mode="json", exclude={"sweep"})))
    monkeypatch.setenv("COLUMNS", "80")
    table = tmp_path / "runs.csv"
    history = tmp_path / "h.json"
    with fake_cuda(FakeCuda()):
        arguments = ["profile", str(recipe), "--csv", str(table), "--history", str(history)]
        assert run([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [step["name"] for step in report["ladder"]] == ["allocated", "reserved", "process", "device"]
    assert str(history) in captured.err
    header, row = (line.split(",") for line in table.read_text().splitlines())
    assert row[header.index("prefill_device_bytes")] == str(report["phases"][1]["device_bytes"])
    assert row[header.index("temperature_max_c")] == "55"


@pytest.mark.parametrize("more", [(), ("--per-token",)])
def test_out_of_memory_is_one_sentence_of_the_command(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(cuda_recipe("inference").model_dump(mode="json", exclude={"sweep"})))
    with fake_cuda(FakeCuda(limit=0)):
        assert run(["profile", str(recipe), *more]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "bug in memgpt" not in told
    assert re.search(r"out of memory in load: it asked for \d+ bytes while \S+ MiB were allocated", told)
    assert "`memgpt estimate --trace` says what this recipe needs" in told


def test_out_of_memory_on_cpu_is_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out_of_memory(failure.value)
    assert f"out of memory in decode: it asked for {2**60} bytes;" in str(exhausted(failure.value, "decode"))
    assert not ran_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(MemoryError) as failure_of_python:
        bytearray(2**62)
    assert "in load: MemoryError;" in str(exhausted(failure_of_python.value, "load"))


# -- which device


def gpus(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name=names[index], total_memory=80 * GIB),
    )


@pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:1", 1), ("h100", 1)])
def test_a_gpu_is_found_by_number_and_by_name(name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "Tesla T4", NAME)
    device = find_device(Device(name=name))
    assert isinstance(device, CudaDevice)
    assert device.torch_device == torch.device("cuda", index)
    assert device.summary.name == ("Tesla T4", NAME)[index]


def test_a_gpu_that_is_another_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "Tesla T4")
    with pytest.raises(EnvironmentUnavailableError, match="no 'h100' here: cuda:0 is Tesla T4"):
        find_device(Device(name="h100"))
    with pytest.raises(UsageError, match="h1000"):
        find_device(Device(name="h1000"))


def test_an_allocator_that_does_not_count_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, NAME)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    with pytest.raises(EnvironmentUnavailableError, match=r"backend:cudaMallocAsync, which does not count"):
        find_device(Device(name="cuda"))
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "0")
    with pytest.raises(EnvironmentUnavailableError, match="run it without PYTORCH_NO_CUDA_MEMORY_CACHING"):
        find_device(Device(name="cuda"))


def test_the_allocator_gets_the_recipes_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, NAME)
    given: list[str] = []
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", given.append)
    find_device(Device(name="cuda", allocator="expandable_segments:True"))
    assert given == ["expandable_segments:True"]

    def refuse(settings: str) -> None:
        raise ValueError(f"Unrecognized key '{settings}'\nException raised from parseArgs")

    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", refuse)
    with pytest.raises(UsageError, match=r"device\.allocator: torch refuses 'x': Unrecognized key 'x'$"):
        find_device(Device(name="cuda", allocator="x"))
