"""The GPUs that we know by name, and which of them a recipe means.

The facts stand in ``gpus.json``: compute capability and streaming multiprocessors as CUDA's ``deviceQuery``
and NVIDIA's data sheets give them, memory as ``nvidia-smi`` of a driver from 510 on prints its total, in MiB,
with error correction as the board comes. CUDA itself counts some hundred MiB less as the device's total.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.errors import EnvironmentUnavailableError, RecipeError, UsageError
from mem_gpt_cli.recipe.problems import nearest, position_of
from mem_gpt_cli.recipe.schema import Recipe

MIB = 1024**2

ASSUMED = "a100-80gb"
"""What ``device: cuda`` stands for on a machine where no GPU can be asked."""

_THIS_MACHINE = re.compile(r"cuda(?::(\d+))?")
_MAKER = re.compile(r"^(nvidia-)?(geforce-|jetson-)?")


@dataclass(frozen=True)
class Entry:
    """A GPU of the catalogue with every name that it goes by."""

    gpu: Gpu
    aliases: tuple[str, ...]
    products: tuple[str, ...]

    @property
    def names(self) -> Iterator[str]:
        """Each word that a recipe may write for it, normalised."""
        yield self.gpu.name
        yield from self.aliases


@dataclass(frozen=True)
class ChosenGpu:
    """The GPU that a recipe is answered for.

    ``why`` is set when it is assumed, because the recipe names none: why the one here could not be taken.
    """

    gpu: Gpu
    why: str | None = None


@cache
def catalogue() -> tuple[Entry, ...]:
    """Every GPU that we know, in the order of their generations."""
    rows = json.loads(Path(__file__).with_name("gpus.json").read_text(encoding="utf-8"))
    return tuple(_entry(row) for row in rows)


def find_gpu(name: str) -> Gpu:
    """The GPU that a recipe's word means: its name, an alias, or what the driver calls it, in any case.

    Raises:
        UsageError: no GPU of the catalogue goes by that name.
    """
    known = _by_name()
    found = known.get(_word(name))
    if found is None:
        near = nearest(_word(name), known)
        hint = f", did you mean {near!r}?" if near else f": choose one of {', '.join(_names())}"
        raise UsageError(f"{name!r} is no GPU that memgpt knows{hint}")
    return found


def gpu_of_product(product: str, total_bytes: int | None = None) -> Gpu | None:
    """The GPU that the driver calls ``product``, or ``None``: unknown, or a mere MIG slice of one.

    Args:
        product: as NVML or CUDA tells it; drivers before 470 leave out ``NVIDIA``.
        total_bytes: the memory that the driver reports; it tells apart cards that share a name.
    """
    word = _word(product)
    alike = [entry.gpu for entry in catalogue() if word in map(_word, entry.products)]
    if total_bytes is None or len(alike) < 2:
        return alike[0] if alike else None
    return min(alike, key=lambda gpu: abs(gpu.total_bytes - total_bytes))


def gpu_of(recipe: Recipe) -> ChosenGpu | None:
    """The GPU that a recipe's device is, or ``None`` on the CPU.

    ``cuda`` and ``cuda:N`` are the GPU of this machine, as NVML or an imported torch describes it; on a
    machine without one they are assumed to be an A100 with 80 GB, and the answer says so.

    Raises:
        RecipeError: ``device.name`` is no GPU of the catalogue.
    """
    name = recipe.device.name
    if name == "cpu":
        return None
    if numbered := _THIS_MACHINE.fullmatch(name):
        from mem_gpt_cli.devices.present import gpu_present  # reads the catalogue itself

        try:
            return ChosenGpu(gpu_present(int(numbered[1] or 0)))
        except EnvironmentUnavailableError as unknown:
            return ChosenGpu(find_gpu(ASSUMED), why=str(unknown))
    try:
        return ChosenGpu(find_gpu(name))
    except UsageError as unknown:
        path = ("device", "name")
        raise RecipeError(f"device.name: {unknown}", position_of(path, recipe.text)) from None


def _entry(row: Mapping[str, Any]) -> Entry:
    major, minor = row["capability"]
    gpu = Gpu(
        name=row["name"],
        product=row["products"][0],
        capability=(major, minor),
        multiprocessors=row["multiprocessors"],
        total_bytes=row["total_mib"] * MIB,
        total_is_nominal=row.get("total_is_nominal", False),
        unified_memory=row.get("unified_memory", False),
    )
    return Entry(gpu, tuple(row["aliases"]), tuple(row["products"]))


@cache
def _by_name() -> Mapping[str, Gpu]:
    named = {name: entry.gpu for entry in catalogue() for name in entry.names}
    for entry in catalogue():
        for product in entry.products:
            named.setdefault(_word(product), entry.gpu)
    return named


def _names() -> Iterator[str]:
    return (entry.gpu.name for entry in catalogue())


def _word(name: str) -> str:
    """A name as the catalogue spells it: lower case, hyphens, without the maker's own."""
    return _MAKER.sub("", re.sub(r"[\s_]+", "-", name.strip().lower()))
