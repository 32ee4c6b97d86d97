"""What is installed: Python, what memgpt requires, and what its options can use."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Any

MEMGPT = "mem-gpt-cli"

REQUIRED: Mapping[str, str] = {
    "torch": "runs and traces models",
    "transformers": "the models' code",
    "numpy": "arrays",
    "safetensors": "weights",
    "gguf": "weights of GGUF files",
    "huggingface_hub": "configs and weights by hub id",
    "nvidia-ml-py": "what the driver says of a GPU",
    "typer": "the command line",
    "rich": "tables",
    "pydantic": "recipes",
    "pyyaml": "recipes",
}
"""What memgpt does not work without, and what each is for."""

OPTIONAL: Mapping[str, str] = {
    "matplotlib": "pictures (--plot, --timeline)",
    "plotly": "pages (--timeline)",
    "accelerate": "fine-tuning in several processes",
    "peft": "adapters",
    "bitsandbytes": "4-bit and 8-bit weights and optimizers",
    "torchao": "4-bit and 8-bit weights",
    "flash-attn": "its own attention kernels",
    "triton": "compiled kernels on a GPU",
}
"""What single options use."""

_HOW_TO_BUILD = {"flash-attn": " --no-build-isolation"}


@dataclass(frozen=True)
class Package:
    """A distribution.

    Args:
        name: as ``pip`` knows it.
        purpose: what memgpt uses it for.
        required: whether memgpt is of no use without it.
        version: the installed one, ``None`` where there is none.
        wanted: the versions that fit, e.g. ``>=2.11``; empty for any.
        fits: whether one is installed, of a version that fits.
        install: the command that brings it.
    """

    name: str
    purpose: str
    required: bool
    version: str | None
    wanted: str
    fits: bool
    install: str


def packages() -> tuple[Package, ...]:
    """Every distribution that memgpt requires or can use, what is required first."""
    asked = dict(_asked())
    return tuple(
        _package(name, purpose, required, *asked.get(name, ("", None)))
        for required, names in ((True, REQUIRED), (False, OPTIONAL))
        for name, purpose in names.items()
    )


def python() -> Package:
    """The interpreter, judged like a distribution."""
    try:
        wanted = metadata(MEMGPT)["Requires-Python"] or ""
    except PackageNotFoundError:
        wanted = ""
    running = platform.python_version()
    return Package(
        "python", "", True, running, wanted, _fits(running, wanted), f"a Python of version {wanted}"
    )


def _package(name: str, purpose: str, required: bool, wanted: str, extra: str | None) -> Package:
    try:
        installed: str | None = version(name)
    except PackageNotFoundError:
        installed = None
    if extra:
        install = f"pip install '{MEMGPT}[{extra}]'"
    else:
        quoted = f"'{name}{wanted}'" if wanted else name
        install = f"pip install {quoted}{_HOW_TO_BUILD.get(name, '')}"
    fits = installed is not None and _fits(installed, wanted)
    return Package(name, purpose, required, installed, wanted, fits, install)


def _asked() -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Of each distribution in memgpt's own metadata: the versions that fit, and the extra that brings it."""
    try:
        from packaging.requirements import Requirement

        own = metadata(MEMGPT)
    except (ImportError, PackageNotFoundError):
        return
    extras = [extra for extra in own.get_all("Provides-Extra") or () if extra != "dev"]
    for line in own.get_all("Requires-Dist") or ():
        requirement = Requirement(line)
        bringing = [extra for extra in extras if _brings(requirement, extra)]
        if bringing or requirement.marker is None:
            yield requirement.name, (str(requirement.specifier), bringing[0] if bringing else None)


def _brings(requirement: Any, extra: str) -> bool:
    return requirement.marker is not None and requirement.marker.evaluate({"extra": extra})


def _fits(installed: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # nothing here compares versions; transformers, which brings `packaging`, is missing too
    return SpecifierSet(wanted).contains(installed, prereleases=True)
