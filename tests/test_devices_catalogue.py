"""The GPUs that memgpt knows, and which of them a recipe means."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_nvml import FakeGpu, FakeNvml

from mem_gpt_cli.devices.catalogue import ASSUMED, catalogue, find_gpu, gpu_of, gpu_of_product
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.errors import RecipeError, UsageError
from mem_gpt_cli.recipe import load_recipe

MIB = 1024**2
CAPABILITIES = {
    "p": {(6, 0)},
    "v": {(7, 0)},
    "t": {(7, 5)},
    "a": {(8, 0), (8, 6)},
    "l": {(8, 9)},
    "o": {(8, 7)},
    "h": {(9, 0)},
    "b": {(10, 0)},
    "gh": {(9, 0)},
    "gb": {(12, 1)},
    "rtx-2": {(7, 5)},
    "rtx-3": {(8, 6)},
    "rtx-a": {(8, 6)},
    "rtx-4": {(8, 9)},
    "rtx-6": {(8, 9)},
    "rtx-5": {(12, 0)},
    "rtx-pro": {(12, 0)},
}
"""What a name's beginning says of the generation, by NVIDIA's table of compute capabilities."""

FULL_CHIP = {
    (6, 0): 60,
    (7, 0): 84,
    (7, 5): 72,
    (8, 0): 128,
    (8, 6): 84,
    (8, 7): 16,
    (8, 9): 144,
    (9, 0): 144,
    (10, 0): 160,
    (12, 0): 192,
    (12, 1): 48,
}
"""Multiprocessors on the generation's largest chip, by its white paper: no product can have more."""


def test_every_wanted_gpu_is_there() -> None:
    wanted = """t4 v100-16gb v100-32gb p100 a10 a10g a30 a40 a100-40gb a100-80gb a6000 a4000 l4 l40 l40s
        rtx-2080-ti 3060 3080 3090 rtx-4060-ti-16gb 4070 4080 4090 5070-ti 5080 5090 rtx-6000-ada rtx-pro-6000
        h100 h100-pcie h100-nvl h200 b200 gh200 gb10 orin"""
    assert len({find_gpu(name).name for name in wanted.split()}) == len(wanted.split())


def test_no_two_gpus_share_a_name() -> None:
    shared = [name for name, times in Counter(n for e in catalogue() for n in e.names).items() if times > 1]
    assert not shared
    assert all(name == name.lower() and " " not in name for entry in catalogue() for name in entry.names)


@pytest.mark.parametrize("gpu", [entry.gpu for entry in catalogue()], ids=lambda gpu: gpu.name)
def test_facts_agree_with_each_other(gpu: Gpu) -> None:
    beginning = max((key for key in CAPABILITIES if gpu.name.startswith(key)), key=len)
    assert gpu.capability in CAPABILITIES[beginning]
    assert gpu.multiprocessors <= FULL_CHIP[gpu.capability]
    # Turing and later are cut by pairs of multiprocessors (TPCs), Pascal and Volta too.
    assert gpu.multiprocessors % 2 == 0
    assert gpu.unified_memory == (gpu.name.startswith(("orin", "gb10")))
    assert gpu.unified_memory <= gpu.total_is_nominal
    nominal = [int(part[:-2]) for part in gpu.name.split("-") if part.endswith("gb")]
    assert all(0.93 <= gpu.total_bytes / (size * 1024 * MIB) <= 1.0 for size in nominal)


def test_the_hopper_chips_differ_in_what_kernels_see() -> None:
    facts = {
        name: (find_gpu(name).multiprocessors, find_gpu(name).total_bytes // MIB) for name in ("h100", "h200")
    }
    assert facts == {"h100": (132, 81559), "h200": (132, 143771)}
    assert find_gpu("h100-pcie").multiprocessors == 114
    assert {find_gpu(name).capability for name in ("h100", "h100-nvl", "h200", "gh200")} == {(9, 0)}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("H100", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("a100", "a100-80gb"),
        ("RTX 4090", "rtx-4090"),
        ("rtx_4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("GeForce RTX 4090", "rtx-4090"),
        ("  T4 ", "t4"),
    ],
)
def test_a_gpu_is_found_as_people_write_it(written: str, meant: str) -> None:
    assert find_gpu(written).name == meant


def test_an_unknown_gpu_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        UsageError, match=r"'rtx-4091' is no GPU that memgpt knows, did you mean 'rtx-4090'\?"
    ):
        find_gpu("rtx-4091")
    with pytest.raises(UsageError, match=r"choose one of p100, .*h100.*gb10"):
        find_gpu("???")


def test_every_product_name_leads_back_to_its_gpu() -> None:
    for entry in catalogue():
        for product in entry.products:
            assert gpu_of_product(product, entry.gpu.total_bytes) == entry.gpu
            assert gpu_of_product(product.removeprefix("NVIDIA "), entry.gpu.total_bytes) == entry.gpu


def test_memory_tells_apart_what_a_product_name_does_not() -> None:
    product = "NVIDIA GeForce RTX 4060 Ti"
    found = {gpu_of_product(product, size * 1024 * MIB) for size in (8, 16)}
    assert {gpu.name for gpu in found if gpu} == {"rtx-4060-ti-8gb", "rtx-4060-ti-16gb"}


def test_a_slice_of_a_gpu_is_not_the_gpu() -> None:
    assert gpu_of_product("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert gpu_of_product("") is None


def test_the_cpu_is_no_gpu() -> None:
    assert gpu_of(load_recipe(flags={"device.name": "cpu"})) is None


def test_a_named_gpu_is_not_assumed() -> None:
    chosen = gpu_of(load_recipe(flags={"device.name": "h100"}))
    assert chosen is not None
    assert chosen.gpu == find_gpu("h100")
    assert chosen.why is None


def test_an_unknown_name_gets_its_place(tmp_path: Path) -> None:
    recipe = tmp_path / "train.yaml"
    recipe.write_text("model: {name: gpt2}\ndevice: {name: h10}\n")
    with pytest.raises(
        RecipeError, match=r"train\.yaml:2:16: device\.name: 'h10' is no GPU .*did you mean"
    ) as caught:
        gpu_of(load_recipe(recipe))
    assert caught.value.position is not None


def fake_nvml(monkeypatch: pytest.MonkeyPatch, library: FakeNvml) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def fake_torch(monkeypatch: pytest.MonkeyPatch, *products: SimpleNamespace) -> None:
    """A torch with these GPUs, in a machine without NVML."""
    fake_nvml(monkeypatch, FakeNvml(there=False))
    cuda = SimpleNamespace(
        is_available=lambda: bool(products),
        device_count=lambda: len(products),
        get_device_properties=lambda index: products[index],
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


def properties(name: str, capability: tuple[int, int], multiprocessors: int, mib: int) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        major=capability[0],
        minor=capability[1],
        multi_processor_count=multiprocessors,
        total_memory=mib * MIB,
        is_integrated=0,
    )


def chosen_for(device: str) -> tuple[Gpu, bool]:
    chosen = gpu_of(load_recipe(flags={"device.name": device}))
    assert chosen is not None
    return chosen.gpu, chosen.why is not None


def test_nvml_knows_the_gpu_of_this_machine_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [FakeGpu(name="NVIDIA L4", total=23000 * MIB, uuid=f"GPU-{index}") for index in range(2)]
    fake_nvml(monkeypatch, FakeNvml(*gpus))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert chosen_for("cuda:1") == (replace(find_gpu("l4"), total_bytes=23000 * MIB), False)
    assert chosen_for("cuda:2") == (find_gpu(ASSUMED), True)


def test_a_gpu_without_memory_of_its_own_is_known_too(monkeypatch: pytest.MonkeyPatch) -> None:
    untold = frozenset({"memory", "memory_v2"})
    fake_nvml(monkeypatch, FakeNvml(FakeGpu(name="NVIDIA GB10", unsupported=untold)))
    assert chosen_for("cuda") == (find_gpu("gb10"), False)


def test_a_slice_is_described_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    fake_torch(monkeypatch, properties(name, (9, 0), 16, 9728))
    part = FakeGpu(name=name, uuid="MIG-1", total=9728 * MIB)
    fake_nvml(monkeypatch, FakeNvml(FakeGpu(instances=[part])))
    gpu, assumed = chosen_for("cuda")
    assert (gpu.capability, gpu.multiprocessors, gpu.total_bytes) == ((9, 0), 16, 9728 * MIB)
    assert not assumed


def test_without_a_gpu_one_is_assumed_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch)
    assert chosen_for("cuda") == (find_gpu(ASSUMED), True)


CUT = FakeGpu(instances=[FakeGpu(uuid="MIG-1"), FakeGpu(uuid="MIG-2")])


@pytest.mark.parametrize(
    ("gpus", "why"),
    [
        ((), "none is here"),
        ((FakeGpu(), FakeGpu(name="NVIDIA L4", uuid="GPU-b")), "set CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        ((CUT,), "is cut into 2 MIG instances"),
        ((FakeGpu(lost_after=0),), "the GPU is lost"),
        ((FakeGpu(name="NVIDIA Imagined 1"),), "this machine's NVIDIA Imagined 1 is not in the catalogue"),
    ],
)
def test_why_the_gpu_here_was_not_taken_is_told(
    gpus: tuple[FakeGpu, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvml(monkeypatch, FakeNvml(*gpus))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    chosen = gpu_of(load_recipe(flags={"device.name": "cuda"}))
    assert chosen is not None
    assert chosen.gpu == find_gpu(ASSUMED)
    assert why in str(chosen.why)


def test_torch_knows_gpus_that_the_catalogue_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(
        monkeypatch,
        properties("NVIDIA L4", (8, 9), 58, 22563),
        properties("NVIDIA Imagined 1", (8, 6), 40, 9999),
    )
    assert chosen_for("cuda") == (find_gpu("l4"), False)
    gpu, assumed = chosen_for("cuda:1")
    assert (gpu.multiprocessors, gpu.total_bytes, assumed) == (40, 9999 * MIB, False)
    assert chosen_for("cuda:2") == (find_gpu(ASSUMED), True)
