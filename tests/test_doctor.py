"""``memgpt doctor``: whatever a backend does, it becomes a row."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_nvml import FakeGpu, FakeNvml

from mem_gpt_cli.cli import doctor as command
from mem_gpt_cli.cli.main import run
from mem_gpt_cli.doctor import packages as packages_module
from mem_gpt_cli.doctor import tries as tries_module
from mem_gpt_cli.doctor.attempt import Attempt, attempt
from mem_gpt_cli.doctor.diagnosis import Diagnosis, diagnose
from mem_gpt_cli.doctor.gpus import look
from mem_gpt_cli.doctor.packages import OPTIONAL, REQUIRED, Package, packages, python
from mem_gpt_cli.doctor.tries import TORCH_ON_CUDA, TRIES, Try
from mem_gpt_cli.errors import EnvironmentUnavailableError

ROOT = Path(__file__).parents[1]
BACKENDS = """
import os, signal, subprocess, sys, time
from pathlib import Path
from mem_gpt_cli.errors import EnvironmentUnavailableError

def fine(word): return {"detail": word}
def segfault(): os.kill(os.getpid(), signal.SIGSEGV)
def raises(): raise ValueError("two\\n  lines")
def unavailable(): raise EnvironmentUnavailableError("no such device")
def hangs(file):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(file).write_text(str(child.pid))
    time.sleep(600)
def leaves():
    print("the library says goodbye", file=sys.stderr)
    os._exit(3)
def leaves_quietly(): os._exit(0)
def garbage():
    sys.stdout.buffer.write(b"\\xff\\x00{" * 100_000)
    return {"detail": "through the noise"}
def returns_an_object(): return {"detail": object()}
def returns_a_list(): return [1]
def reads(): return {"detail": repr(sys.stdin.read())}
"""


@pytest.fixture
def backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "made_up_backends.py").write_text(BACKENDS)
    monkeypatch.syspath_prepend(tmp_path)
    return "made_up_backends"


@pytest.mark.parametrize(
    ("function", "ending", "sentence"),
    [
        ("segfault", "crashed", "ended by signal 11: Segmentation fault"),
        ("raises", "failed", "ValueError: two lines"),
        ("unavailable", "unavailable", "no such device"),
        ("leaves", "failed", "ended with exit code 3 and no answer: the library says goodbye"),
        ("leaves_quietly", "failed", "ended with exit code 0 and no answer"),
        ("returns_an_object", "failed", "TypeError: Object of type object is not JSON serializable"),
        ("returns_a_list", "failed", "ended with exit code 0 and no answer"),
        ("not_there", "failed", "AttributeError: module 'made_up_backends' has no attribute 'not_there'"),
    ],
)
def test_whatever_a_backend_does_is_an_answer(
    backends: str, function: str, ending: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = attempt(f"{backends}:{function}", 60)
    assert (found.ending, found.sentence, found.answer) == (ending, sentence, {})
    assert capfd.readouterr() == ("", "")


def test_what_works_answers_through_any_noise(backends: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert attempt(f"{backends}:fine", 60, word="yes").answer == {"detail": "yes"}
    assert attempt(f"{backends}:garbage", 60).answer == {"detail": "through the noise"}
    assert attempt(f"{backends}:reads", 60).answer == {"detail": "''"}
    assert capfd.readouterr() == ("", "")


def test_a_backend_that_hangs_is_ended_with_its_children(backends: str, tmp_path: Path) -> None:
    file = tmp_path / "child"
    found = attempt(f"{backends}:hangs", 3, file=str(file))
    assert (found.ending, found.sentence) == ("hung", "gave no answer within 3 s and was ended")
    assert not alive(int(file.read_text()))


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet collected does not."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.05)
    return True


def test_an_interrupt_ends_what_is_being_tried(backends: str, tmp_path: Path) -> None:
    file = tmp_path / "child"
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from mem_gpt_cli.doctor.attempt import attempt; "
        f"attempt('{backends}:hangs', 600, file={str(file)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (file.exists() and file.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert not alive(int(file.read_text()))


def test_every_try_has_its_function_and_its_package() -> None:
    for each in TRIES:
        assert callable(getattr(tries_module, each.function)), each.name
        assert each.package in {**REQUIRED, **OPTIONAL}, each.name
    assert len({each.name for each in TRIES}) == len(TRIES) > 12
    assert {each.name for each in TRIES if each.required} == {"torch on CPU", "transformers"}


def tried(name: str) -> Attempt:
    each = next(each for each in TRIES if each.name == name)
    pytest.importorskip(each.package.replace("-", "_"))
    return attempt(each.target, 200, **dict(each.arguments))


def test_torch_works_here_and_tells_its_build() -> None:
    found = tried("torch on CPU")
    assert found.ending == "ok", found.sentence
    assert found.answer["torch"] == torch.__version__
    assert found.answer["cuda"] == torch.version.cuda


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_cuda_is_unavailable_and_not_broken() -> None:
    found = tried(TORCH_ON_CUDA.name)
    assert found.ending == "unavailable"
    assert found.sentence in ("this build of torch has no CUDA", "torch finds no GPU")


@pytest.mark.parametrize("each", [each for each in TRIES if not each.cuda], ids=lambda each: each.name)
def test_what_is_installed_here_computes_the_right_thing(each: Try) -> None:
    pytest.importorskip(each.package)
    assert getattr(tries_module, each.function)(**dict(each.arguments))["detail"]


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION"])
def test_attention_is_held_to_the_plain_formula(backend: str) -> None:
    assert tries_module.sdpa(backend, "cpu")["detail"] == "forward and backward, float16"


def test_a_wrong_result_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.Tensor.__matmul__

    def doubled_in_single_precision(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return product(left, right) * (2 if left.dtype == torch.float32 else 1)

    monkeypatch.setattr(torch.Tensor, "__matmul__", doubled_in_single_precision)
    with pytest.raises(ArithmeticError, match=r"its result is off by 1, more than 0\.01"):
        tries_module.torch_matmul("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use")
@pytest.mark.parametrize("name", [each.name for each in TRIES if each.cuda])
def test_every_try_on_cuda_ends_in_a_row(name: str) -> None:
    found = tried(name)
    assert found.ending in ("ok", "failed")
    assert name not in (TORCH_ON_CUDA.name, "SDPA efficient") or found.ending == "ok", found.sentence


def test_what_is_required_is_what_the_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.partition(">")[0].partition("=")[0] for line in project["dependencies"]}
    assert names == set(REQUIRED)
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra != "dev"]
    assert {line.partition(">")[0] for lines in extras for line in lines} <= set(OPTIONAL)


def test_each_package_has_its_version_and_its_command() -> None:
    found = {each.name: each for each in packages()}
    assert found["torch"].version == torch.__version__
    assert found["torch"].fits
    assert found["torch"].wanted.startswith(">=")
    assert found["matplotlib"].install == "pip install 'mem-gpt-cli[plot]'"
    assert found["flash-attn"].install == "pip install flash-attn --no-build-isolation"
    assert found["torch"].install == f"pip install 'torch{found['torch'].wanted}'"
    assert python().fits


def test_a_version_that_does_not_fit_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.4.1", "plotly": "1.0"}
    real = packages_module.version
    monkeypatch.setattr(packages_module, "version", lambda name: versions.get(name) or real(name))
    found = {each.name: each for each in packages()}
    assert not found["torch"].fits
    assert not found["plotly"].fits
    assert found["rich"].fits


ok = Attempt("ok", answer={"detail": "fine"})
NO_GPU = Attempt("unavailable", "NVML cannot be used")
CPU_BUILD = Attempt("ok", answer={"detail": "fine", "torch": "2.13.0+cpu", "cuda": None, "cudnn": None})
ONE_GPU = Attempt(
    "ok",
    answer={
        "detail": "driver 580, 1 GPU",
        "driver": "580",
        "gpus": [
            {
                "index": 0,
                "product": "NVIDIA L4",
                "uuid": "GPU-1",
                "known_as": "l4",
                "calibrated": False,
                "capability": "8.9",
                "total_bytes": 23034 * 2**20,
                "free_bytes": None,
                "mig": "off",
                "problem": None,
            }
        ],
    },
)


def diagnosed(
    monkeypatch: pytest.MonkeyPatch, *, missing: tuple[str, ...] = (), **answers: Attempt
) -> Diagnosis:
    """A diagnosis of made-up answers, by a try's function; asked what is not given, all is well."""
    from mem_gpt_cli.doctor import diagnosis

    def package(name: str) -> Package:
        there = name not in missing
        return Package(name, "", name in REQUIRED, "9" if there else None, "", there, f"pip install {name}")

    there = tuple(map(package, (*REQUIRED, *OPTIONAL)))
    monkeypatch.setattr(diagnosis, "packages", lambda: there)

    async def ask(target: str, _: float, **arguments: Any) -> Attempt:
        name = target.partition(":")[2]
        return answers.get(f"{name}_{arguments['device']}" if "device" in arguments else name, ok)

    return diagnose(1, ask=ask)


def status(found: Diagnosis) -> dict[str, str]:
    return {each.name: each.status for each in found.outcomes}


def test_nothing_is_tried_on_cuda_where_torch_fails_there(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = Attempt("crashed", "ended by signal 11")
    found = status(diagnosed(monkeypatch, torch_matmul_cuda=crash, look=ONE_GPU))
    assert found.pop("torch on CUDA") == "crashed"
    on_cuda = {each.name for each in TRIES if each.cuda and each != TORCH_ON_CUDA}
    assert {name for name, each in found.items() if each == "unavailable"} == on_cuda
    assert found["NVML"] == "ok"


def test_a_broken_backend_is_a_row_and_a_requirement_is_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hung = Attempt("hung", "gave no answer within 1 s and was ended")
    found = diagnosed(monkeypatch, bitsandbytes_nf4_cpu=hung, look=NO_GPU)
    assert status(found)["bitsandbytes nf4, CPU"] == "hung"
    assert found.broken == ()
    found = diagnosed(monkeypatch, transformers_forward=hung, look=NO_GPU)
    assert found.broken == ("transformers does not work: gave no answer within 1 s and was ended",)
    assert not found.as_dict()["ok"]


def test_a_missing_requirement_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosed(monkeypatch, missing=("transformers", "peft"), look=NO_GPU)
    assert found.broken == ("transformers is missing (needs transformers)",)
    assert found.installs == {"pip install transformers": ("transformers",), "pip install peft": ("peft",)}
    assert status(found)["peft LoRA"] == "missing"


def test_what_only_a_gpu_can_use_is_wanted_only_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    without = diagnosed(monkeypatch, missing=("flash-attn", "triton"), look=NO_GPU)
    assert not without.installs
    beside = diagnosed(monkeypatch, missing=("flash-attn",), look=ONE_GPU)
    assert list(beside.installs) == ["pip install flash-attn"]


def test_a_gpu_beside_a_torch_without_cuda_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosed(monkeypatch, torch_matmul_cpu=CPU_BUILD, look=ONE_GPU)
    assert found.installs == {"pip install --force-reinstall torch": ("a build of torch with CUDA",)}
    assert found.torch == {"torch": "2.13.0+cpu", "cuda": None, "cudnn": None}


def test_a_setting_that_torch_would_refuse_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandible_segments:True")
    found = diagnosed(monkeypatch, look=NO_GPU)
    assert found.allocator == {"PYTORCH_CUDA_ALLOC_CONF": "expandible_segments:True"}
    assert "did you mean 'expandable_segments'" in (found.allocator_problem or "")


MACHINE = """
import sys
from fake_nvml import GIB, MIB, FakeGpu, FakeNvml
whole = dict(name="NVIDIA A100-SXM4-80GB", uuid="GPU-b", capability=(8, 0), total=80 * GIB)
part = whole | dict(name="NVIDIA A100-SXM4-80GB MIG 1g.10gb", uuid="MIG-1", total=9728 * MIB)
untold = frozenset({"memory", "memory_v2"})
sys.modules[__name__] = FakeNvml(
    FakeGpu(total=81559 * MIB, used=4 * GIB),
    FakeGpu(**whole, instances=[FakeGpu(**part)]),
    FakeGpu(name="NVIDIA H200", uuid="GPU-c", lost_after=0),
    FakeGpu(name="NVIDIA GB10", uuid="GPU-d", capability=(12, 1), unsupported=untold),
)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs, in this process and in those it starts: one in MIG mode, one lost, one without memory."""
    (tmp_path / "pynvml.py").write_text(MACHINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setenv("MEMGPT_CALIBRATION", str(tmp_path / "none.json"))


@pytest.mark.usefixtures("machine")
def test_every_gpu_is_listed_and_nothing_unknown_is_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = diagnose(60, tries=TRIES[:1])
    first, whole, part, lost, unified = found.gpus
    assert (first["known_as"], first["capability"], first["mig"]) == ("h100", "9.0", "off")
    assert (first["total_bytes"], first["free_bytes"]) == (81559 * 2**20, 81559 * 2**20 - 4 * 2**30)
    assert (whole["known_as"], whole["mig"]) == ("a100-80gb", "on")
    assert (part["known_as"], part["mig"], part["total_bytes"]) == (None, "instance", 9728 * 2**20)
    assert lost["index"] == 2
    assert lost["problem"].startswith("the GPU is lost")
    assert (unified["total_bytes"], unified["free_bytes"]) == (None, None)
    assert "Not Supported" in unified["problem"]
    monkeypatch.setenv("COLUMNS", "80")
    command._print(found)
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert "GPU 2: the GPU is lost" in printed


def test_a_gpu_that_may_not_be_read_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(FakeGpu(), FakeGpu(name="NVIDIA L4", uuid="GPU-b"))

    def by_index(index: int) -> FakeGpu:
        if index == 0:
            raise FakeNvml.NVMLError_NoPermission
        return nvml.gpus[index]

    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", by_index)
    closed, open_one = look()["gpus"]
    assert closed == {"index": 0, "problem": "NVML cannot open the GPU 0 (Insufficient Permissions)"}
    assert (open_one["index"], open_one["known_as"]) == (1, "l4")


def test_a_driver_that_counts_no_gpus_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> int:
        raise FakeNvml.NVMLError

    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(nvml, "nvmlDeviceGetCount", unknown)
    with pytest.raises(EnvironmentUnavailableError, match="does not tell how many GPUs"):
        look()


@pytest.mark.usefixtures("machine")
def test_a_calibration_that_cannot_be_read_is_a_problem_of_its_gpu(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("{")
    first, *_ = look()["gpus"]
    assert (first["known_as"], first["calibrated"]) == ("h100", False)
    assert "none.json is no calibration file" in first["problem"]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_command_prints_a_table_or_one_object(
    arguments: list[str], backends: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = (
        Try("a segfault", "segfault", "torch", module=backends),
        Try("one that works", "garbage", "torch", module=backends),
    )
    monkeypatch.setitem(diagnose.__kwdefaults__, "tries", made)
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["doctor", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    if not arguments:
        assert max(len(line) for line in printed.out.splitlines()) <= 80
        assert "crashed" in printed.out
        return
    found = json.loads(printed.out)
    assert [(each["name"], each["status"]) for each in found["tries"]][:2] == [
        ("a segfault", "crashed"),
        ("one that works", "ok"),
    ]
    documented = (ROOT / "docs" / "doctor.md").read_text()
    assert all(f"`{key}`" in documented for key in found)


def test_a_broken_requirement_ends_the_command_with_4(
    backends: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = (Try("torch on CPU", "segfault", "torch", required=True, module=backends),)
    monkeypatch.setitem(diagnose.__kwdefaults__, "tries", made)
    assert run(["doctor"]) == EnvironmentUnavailableError.exit_code == 4
    printed = capsys.readouterr()
    assert (
        printed.err == "memgpt: error: torch on CPU does not work: ended by signal 11: Segmentation fault\n"
    )
    assert "crashed" in printed.out


def test_the_doctor_itself_never_imports_what_it_tries() -> None:
    code = (
        "import sys; from mem_gpt_cli.doctor.diagnosis import diagnose; diagnose(1, tries=()); "
        "print([n for n in ('torch', 'transformers', 'pynvml', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
