"""What the driver tells and what it does not: nothing that is missing becomes a 0."""

from __future__ import annotations

import os

import pytest

from mem_gpt_cli.devices import nvml as nvml_module
from mem_gpt_cli.devices.nvml import GpuLostError, Nvml, NvmlGpu, Reading
from mem_gpt_cli.devices.visible import cuda_gpu, visible_devices
from mem_gpt_cli.errors import EnvironmentUnavailableError
from tests.fake_nvml import GIB, MIB, FakeGpu, FakeNvml, FakeProcess

OWN = os.getpid()


def gpu_of(fake: FakeGpu) -> NvmlGpu:
    return Nvml(FakeNvml(fake)).by_index(0)


def every_reading(gpu: NvmlGpu) -> list[Reading]:
    return [
        gpu.total(),
        gpu.memory(),
        gpu.process_memory(),
        gpu.power(),
        gpu.utilization(),
        gpu.temperature(),
    ]


def test_a_gpu_that_tells_everything() -> None:
    gpu = gpu_of(FakeGpu(processes=[FakeProcess(1, 7), FakeProcess(OWN, 3 * GIB)]))
    values = [reading.value for reading in every_reading(gpu)]
    assert values == [80 * GIB, 4 * GIB, 3 * GIB, 250.0, 90, 55]
    assert all(reading.why_not is None and "NVML" in reading.how for reading in every_reading(gpu))
    assert gpu.name == "NVIDIA H100 80GB HBM3"


def test_nothing_that_is_not_supported_becomes_0() -> None:
    """A chip that shares the system's memory answers Not Supported to both versions of the memory call."""
    everything = {"memory", "memory_v2", "processes", "power", "utilization", "temperature"}
    for reading in every_reading(gpu_of(FakeGpu(unsupported=frozenset(everything)))):
        assert reading.value is None
        assert "Not Supported" in str(reading.why_not)


def test_the_older_memory_call_says_what_it_counts() -> None:
    reading = gpu_of(FakeGpu(used=GIB, reserved=600 * MIB, missing=frozenset({"memory_v2"}))).memory()
    assert reading.value == GIB + 600 * MIB
    assert "version 1" in reading.how
    assert "the driver's own reserve" in reading.how


def test_an_older_driver_lists_processes_by_an_older_call() -> None:
    fake = FakeGpu(processes=[FakeProcess(OWN, GIB)], missing=frozenset({"processes_v3"}))
    assert gpu_of(fake).process_memory().value == GIB


@pytest.mark.parametrize(
    ("processes", "why"),
    [
        ([], "lists no process"),
        ([FakeProcess(OWN + 1, GIB)], "is not among the 1"),
        ([FakeProcess(OWN, None)], "without its memory"),
        ([FakeProcess(OWN, 2**64 - 1)], "without its memory"),
        ([FakeProcess(OWN, 0)], "without its memory"),
    ],
)
def test_a_process_that_the_driver_does_not_name_has_no_figure(
    processes: list[FakeProcess], why: str
) -> None:
    reading = gpu_of(FakeGpu(processes=processes)).process_memory()
    assert reading.value is None
    assert why in str(reading.why_not)


@pytest.mark.parametrize("own_namespace", [True, False])
def test_a_container_is_named_as_the_reason(
    own_namespace: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    namespace = nvml_module.Path(tmp_path) / "pid"
    namespace.symlink_to("pid:[4026532999]" if own_namespace else "pid:[4026531836]")
    monkeypatch.setattr(nvml_module, "_PID_NAMESPACE", namespace)
    why = gpu_of(FakeGpu(processes=[FakeProcess(OWN + 1, GIB)])).process_memory().why_not
    assert ("container" in str(why)) is own_namespace


@pytest.mark.parametrize("error", ["NVMLError_GpuIsLost", "NVMLError_ResetRequired"])
def test_a_lost_gpu_is_no_reading_at_all(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeNvml, "NVMLError_GpuIsLost", getattr(FakeNvml, error))
    gpu = gpu_of(FakeGpu(lost_after=0))
    for read in (gpu.memory, gpu.process_memory, gpu.power, gpu.utilization, gpu.temperature):
        with pytest.raises(GpuLostError, match="lost"):
            read()


def test_a_wrong_call_is_not_taken_for_a_missing_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetPowerUsage")
    with pytest.raises(AttributeError):
        gpu_of(FakeGpu()).power()


def test_nvml_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(EnvironmentUnavailableError, match="NVML Shared Library Not Found"):
        Nvml(FakeNvml(there=False))
    with pytest.raises(EnvironmentUnavailableError, match="cannot open the GPU 3"):
        Nvml(FakeNvml(FakeGpu())).by_index(3)


def test_what_was_opened_is_closed() -> None:
    fake = FakeNvml(FakeGpu(), driver="575.1")
    with Nvml(fake) as nvml:
        assert fake.opened == 1
        assert (nvml.count, nvml.driver_version) == (1, "575.1")
    assert fake.opened == 0
    assert Nvml(FakeNvml(driver=None)).driver_version is None


# -- MIG

INSTANCE = "MIG-aaaaaaaa-1111-2222-3333-444444444444"


def mig_gpu(*instances: FakeGpu | None) -> FakeGpu:
    return FakeGpu(instances=instances, power_mw=[300_000], temperature=[61])


def instance(uuid: str = INSTANCE) -> FakeGpu:
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    return FakeGpu(uuid=uuid, name=name, total=10 * GIB, used=2 * GIB, reserved=0)


def test_a_mig_instance_has_its_own_memory_and_the_whole_gpus_power() -> None:
    gpu = cuda_gpu(Nvml(FakeNvml(mig_gpu(None, instance()))), environment={})
    assert gpu.uuid == INSTANCE
    assert (gpu.total().value, gpu.memory().value) == (10 * GIB, 2 * GIB)
    assert "MIG instance" in gpu.memory().how
    assert (gpu.power().value, gpu.temperature().value) == (300, 61)
    assert "whole GPU" in gpu.power().how
    assert gpu.utilization() == Reading(
        None,
        "NVML, utilization of the MIG instance",
        "NVML does not tell (Not Supported) of a MIG instance",
    )


def test_of_several_mig_instances_one_must_be_named() -> None:
    nvml = Nvml(FakeNvml(mig_gpu(instance(), instance("MIG-b"))))
    with pytest.raises(EnvironmentUnavailableError, match="2 MIG instances"):
        cuda_gpu(nvml, environment={})
    assert cuda_gpu(nvml, environment={"CUDA_VISIBLE_DEVICES": "MIG-b"}).uuid == "MIG-b"
    assert cuda_gpu(nvml, uuid=INSTANCE.removeprefix("MIG-"), environment={}).uuid == INSTANCE


# -- which GPU

A, B, C = (FakeGpu(uuid=f"GPU-{letter}0-{letter}1", bus_id=f"00000000:{letter}7:00.0") for letter in "abc")


def which(ordinal: int, *gpus: FakeGpu, environment: dict[str, str], **told: str) -> str | None:
    return cuda_gpu(Nvml(FakeNvml(*(gpus or (A, B, C)))), ordinal, environment=environment, **told).uuid


@pytest.mark.parametrize(
    ("visible", "ordinal", "uuid"),
    [
        (None, 1, B.uuid),
        ("2,0", 0, C.uuid),
        ("2, 0", 1, A.uuid),
        (f"{C.uuid},{A.uuid}", 0, C.uuid),
        ("GPU-b0,GPU-a0", 1, A.uuid),
    ],
)
def test_visible_devices_are_counted_as_cuda_counts_them(
    visible: str | None, ordinal: int, uuid: str
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert which(ordinal, environment=environment) == uuid


@pytest.mark.parametrize(
    ("setting", "heeded"),
    [
        (None, None),
        ("", []),
        ("-1", []),
        ("0,1", ["0", "1"]),
        ("1,-1,0", ["1"]),
        ("1gpu2,2ampere", ["1", "2"]),
        ("0,0", []),
        ("GPU-a,1", ["GPU-a"]),
        ("MIG-a,MIG-b", ["MIG-a", "MIG-b"]),
        ("none", []),
    ],
)
def test_the_list_ends_where_cuda_ends_it(setting: str | None, heeded: list[str] | None) -> None:
    assert visible_devices(setting) == heeded


def test_what_cuda_itself_says_comes_first() -> None:
    assert which(0, environment={"CUDA_VISIBLE_DEVICES": "1"}, uuid="c0-c1") == C.uuid
    assert which(0, environment={}, bus_id="0000:b7:00.0") == B.uuid


def test_gpus_of_several_kinds_are_not_guessed() -> None:
    other = FakeGpu(uuid="GPU-z", name="NVIDIA T4")
    with pytest.raises(EnvironmentUnavailableError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        which(0, other, A, environment={})
    assert which(0, other, A, environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == "GPU-z"


@pytest.mark.parametrize(
    ("environment", "told", "why"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0"}, {}, "shows 1 GPU"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-,GPU-x"}, {}, "0 GPUs' UUIDs"),
        ({}, {"uuid": "none"}, "cannot open the GPU 'MIG-none'"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_sentence(
    environment: dict[str, str], told: dict[str, str], why: str
) -> None:
    with pytest.raises(EnvironmentUnavailableError, match=why):
        which(1, environment=environment, **told)
