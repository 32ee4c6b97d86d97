"""All of it together: packages, tries, GPUs, allocator settings, and what to do about each."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mem_gpt_cli._version import __version__
from mem_gpt_cli.allocator.settings import VARIABLES, AllocatorSettings
from mem_gpt_cli.doctor.attempt import Attempt, Ending, attempt_soon
from mem_gpt_cli.doctor.gpus import LOOK
from mem_gpt_cli.doctor.packages import Package, packages, python
from mem_gpt_cli.doctor.tries import TORCH_ON_CUDA, TRIES, Try
from mem_gpt_cli.errors import MemgptError

SCHEMA_VERSION = 1
AT_ONCE = 2
"""Processes at a time: each imports torch, which takes a processor and some hundred MiB."""

Status = Literal[Ending, "missing"]
Ask = Callable[..., Awaitable[Attempt]]
OnOutcome = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a try; ``missing`` where its package is not installed."""

    name: str
    status: Status
    detail: str
    required: bool
    package: str
    seconds: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What ``memgpt doctor`` answers with.

    Args:
        python: the interpreter.
        packages: what is installed, and what is not.
        outcomes: what was tried, NVML last.
        torch: version, ``cuda`` and ``cudnn`` of the build, as torch itself tells; empty where it is broken.
        driver: the version of NVIDIA's driver.
        gpus: see ``gpus.look``.
        allocator: each variable of the environment that sets the allocator, and its text.
        allocator_problem: why torch would refuse those, or memgpt not predict them.
    """

    python: Package
    packages: Sequence[Package]
    outcomes: Sequence[Outcome]
    torch: Mapping[str, Any]
    driver: str | None
    gpus: Sequence[Mapping[str, Any]]
    allocator: Mapping[str, str]
    allocator_problem: str | None

    @property
    def broken(self) -> tuple[str, ...]:
        """What is required and does not work, as sentences; none where memgpt can do its work."""
        unfit = (
            f"{each.name} {f'{each.version} does not fit' if each.version else 'is missing'}"
            f" (needs {each.name}{each.wanted})"
            for each in (self.python, *self.packages)
            if each.required and not each.fits
        )
        failed = (
            f"{each.name} does not work: {each.detail}"
            for each in self.outcomes
            if each.required and each.status not in ("ok", "missing")
        )
        return (*unfit, *failed)

    @property
    def installs(self) -> Mapping[str, tuple[str, ...]]:
        """Each command that would bring what is missing, and what it brings."""
        found: dict[str, tuple[str, ...]] = {}
        for each in self.packages:
            if not each.fits and self._of_use(each):
                found[each.install] = (*found.get(each.install, ()), each.name)
        if self.gpus and self.torch and self.torch["cuda"] is None:
            found["pip install --force-reinstall torch"] = ("a build of torch with CUDA",)
        return found

    def _of_use(self, package: Package) -> bool:
        """What only a GPU can use is not missed where there is none."""
        tried = [each for each in TRIES if each.package == package.name]
        return bool(self.gpus) or not tried or not all(each.cuda for each in tried)

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints; ``docs/doctor.md`` has its keys."""
        return {
            "schema_version": SCHEMA_VERSION,
            "memgpt": __version__,
            "platform": platform.platform(),
            "ok": not self.broken,
            "broken": list(self.broken),
            "python": self.python.version,
            "torch": dict(self.torch) or None,
            "driver": self.driver,
            "packages": [asdict(each) for each in self.packages],
            "tries": [asdict(each) for each in self.outcomes],
            "gpus": [dict(each) for each in self.gpus],
            "allocator": dict(self.allocator),
            "allocator_problem": self.allocator_problem,
            "installs": {command: list(names) for command, names in self.installs.items()},
        }


def diagnose(
    timeout_s: float,
    *,
    ask: Ask = attempt_soon,
    tries: Sequence[Try] = TRIES,
    on_outcome: OnOutcome = lambda *_: None,
) -> Diagnosis:
    """Look at everything; each try has ``timeout_s`` for itself.

    Args:
        timeout_s: seconds after which a try is ended.
        ask: runs a function in a process of its own.
        tries: what to try.
        on_outcome: called as ``(name, done, all)`` when a try is over.
    """
    installed = packages()
    there = {each.name for each in installed if each.version}
    runnable = [each for each in tries if each.package in there]
    done = asyncio.run(_run(runnable, timeout_s, ask, on_outcome))
    nvml = asyncio.run(_look(ask, timeout_s)) if "nvidia-ml-py" in there else None
    settings, problem = _allocator()
    build = next((each.answer for each in done.values() if "torch" in each.answer), {})
    return Diagnosis(
        python=python(),
        packages=installed,
        outcomes=(*(_outcome(each, done) for each in tries), _nvml_outcome(nvml)),
        torch={key: build[key] for key in ("torch", "cuda", "cudnn") if key in build},
        driver=nvml.answer.get("driver") if nvml else None,
        gpus=nvml.answer.get("gpus", ()) if nvml else (),
        allocator=settings,
        allocator_problem=problem,
    )


async def _run(
    tries: Sequence[Try], timeout_s: float, ask: Ask, on_outcome: OnOutcome
) -> Mapping[str, Attempt]:
    """Every try that can be made; those on CUDA only after torch itself worked there."""
    done: dict[str, Attempt] = {}
    turn = asyncio.Semaphore(AT_ONCE)

    async def run(each: Try) -> None:
        async with turn:
            done[each.name] = await ask(each.target, timeout_s, **dict(each.arguments))
        on_outcome(each.name, len(done), len(tries))

    await asyncio.gather(*(run(each) for each in tries if not each.cuda or each == TORCH_ON_CUDA))
    if _works(done, TORCH_ON_CUDA):
        await asyncio.gather(*(run(each) for each in tries if each.name not in done))
    return done


async def _look(ask: Ask, timeout_s: float) -> Attempt:
    return await ask(LOOK, timeout_s)


def _works(done: Mapping[str, Attempt], each: Try) -> bool:
    return each.name in done and done[each.name].ending == "ok"


def _outcome(each: Try, done: Mapping[str, Attempt]) -> Outcome:
    if each.cuda and each != TORCH_ON_CUDA and not _works(done, TORCH_ON_CUDA):
        return Outcome(each.name, "unavailable", f"needs {TORCH_ON_CUDA.name}", each.required, each.package)
    if each.name not in done:
        return Outcome(each.name, "missing", f"{each.package} is not installed", each.required, each.package)
    return _told(each.name, done[each.name], each.required, each.package)


def _nvml_outcome(nvml: Attempt | None) -> Outcome:
    if nvml is None:
        return Outcome("NVML", "missing", "nvidia-ml-py is not installed", False, "nvidia-ml-py")
    return _told("NVML", nvml, False, "nvidia-ml-py")


def _told(name: str, found: Attempt, required: bool, package: str) -> Outcome:
    detail = found.sentence or str(found.answer.get("detail", ""))
    return Outcome(name, found.ending, detail, required, package, round(found.seconds, 2))


def _allocator() -> tuple[Mapping[str, str], str | None]:
    settings = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    try:
        AllocatorSettings.from_environment()
    except MemgptError as error:
        return settings, str(error)
    return settings, None
