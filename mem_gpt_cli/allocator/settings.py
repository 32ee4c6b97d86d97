"""The allocator's settings, as ``PYTORCH_CUDA_ALLOC_CONF`` writes them.

From torch 2.11: ``AcceleratorAllocatorConfig`` (``c10/core/AllocatorConfig.{h,cpp}``) and
``CUDAAllocatorConfig`` (``c10/cuda/CUDAAllocatorConfig.{h,cpp}``).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mem_gpt_cli.allocator.sizes import (
    LARGE_ROUNDING_BYTES,
    LARGE_SEGMENT_BYTES,
    MIB,
    MIN_BLOCK_BYTES,
    MIN_LARGE_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    round_up,
    round_up_power_of_two,
)
from mem_gpt_cli.allocator.syntax import Value, flag, fraction, pairs, whole
from mem_gpt_cli.errors import UnsupportedError, UsageError

VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The environment's names for the settings; of two that are set torch takes the first."""

INTERVALS = 16
"""``roundup_power2_divisions`` has a value for each power of two from 1 MiB to 32 GiB and above."""

WITHOUT_EFFECT = frozenset(
    {
        "backend",
        "graph_capture_record_stream_reuse",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register",
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
    }
)
"""Keys that torch takes and that change nothing in the memory of a device outside of CUDA graphs."""


@dataclass(frozen=True)
class AllocatorSettings:
    """What decides how the caching allocator cuts memory; sizes in bytes, ``None`` for no limit.

    ``roundup_power2_divisions[i]`` is for sizes from ``2**i`` MiB up to twice that (the first also for
    smaller, the last also for larger); 0 rounds to 512 bytes only. ``without_effect`` names the keys that
    were given and change nothing here.
    """

    expandable_segments: bool = False
    max_split_bytes: int | None = None
    max_non_split_rounding_bytes: int = LARGE_SEGMENT_BYTES
    large_segment_bytes: int = LARGE_SEGMENT_BYTES
    garbage_collection_threshold: float = 0.0
    roundup_power2_divisions: tuple[int, ...] = (0,) * INTERVALS
    memory_fraction: float = 1.0
    without_effect: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, source: str = "PYTORCH_CUDA_ALLOC_CONF") -> AllocatorSettings:
        """Settings of a text such as ``expandable_segments:True,max_split_size_mb:128``.

        ``source`` is where the text stands, for messages. Raises ``UsageError`` for what torch refuses (an
        unknown key, a value out of range) and ``UnsupportedError`` for ``backend:cudaMallocAsync``.
        """
        try:
            return _settings(dict(pairs(text)))
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> AllocatorSettings:
        """The settings that torch would take from the environment; the defaults where it sets none."""
        environment = os.environ if environment is None else environment
        for name in VARIABLES:
            if name in environment:
                return cls.parse(environment[name], source=name)
        return cls()

    def without_fraction(self) -> AllocatorSettings:
        """These settings, with all of the device left to torch."""
        return replace(self, memory_fraction=1.0)

    def block_bytes(self, nbytes: int) -> int:
        """The size that a request is rounded up to (``round_size``)."""
        if nbytes < MIN_BLOCK_BYTES:
            return MIN_BLOCK_BYTES
        if not self._divides:
            return round_up(nbytes, MIN_BLOCK_BYTES)
        interval = min(max(nbytes.bit_length() - MIB.bit_length(), 0), INTERVALS - 1)
        divisions = self.roundup_power2_divisions[interval]
        if divisions > 1 and nbytes > MIN_BLOCK_BYTES * divisions:
            return round_up_power_of_two(nbytes, divisions)
        return round_up(nbytes, MIN_BLOCK_BYTES)

    @cached_property
    def _divides(self) -> bool:
        """Whether any size is rounded to more than 512 bytes."""
        return max(self.roundup_power2_divisions) > 1

    def segment_bytes(self, block: int) -> int:
        """What the driver is asked for where no free block is large enough (``get_allocation_size``)."""
        if block <= SMALL_BYTES:
            return SMALL_SEGMENT_BYTES
        if block < MIN_LARGE_BYTES:
            return self.large_segment_bytes
        return round_up(block, LARGE_ROUNDING_BYTES)

    @cached_property
    def collects_garbage(self) -> bool:
        """Whether the threshold acts: torch looks at it only under a memory fraction below 1."""
        return self.garbage_collection_threshold > 0 and self.memory_fraction < 1


def _settings(given: dict[str, Value]) -> AllocatorSettings:
    """The settings of parsed pairs, each key known and in its range."""
    for key in given:
        _known(key)
    if given.get("backend") == "cudaMallocAsync":
        raise UnsupportedError(
            "backend:cudaMallocAsync hands the memory to the CUDA driver's own pool, which is not modelled: "
            "leave the backend out or set backend:native"
        )
    if given.get("backend", "native") != "native":
        raise UsageError(f"backend is native or cudaMallocAsync, not {given['backend']!r}")
    settings = AllocatorSettings()
    for key in given.keys() - WITHOUT_EFFECT:
        settings = replace(settings, **READERS[key](given[key]))
    if "max_non_split_rounding_mb" not in given:
        settings = replace(settings, max_non_split_rounding_bytes=settings.large_segment_bytes)
    _at_least_a_segment("max_split_size_mb", settings.max_split_bytes, settings)
    _at_least_a_segment("max_non_split_rounding_mb", settings.max_non_split_rounding_bytes, settings)
    idle = [key for key in given if key in WITHOUT_EFFECT]
    if settings.garbage_collection_threshold and not settings.collects_garbage:
        idle.append("garbage_collection_threshold")
    return replace(settings, without_effect=tuple(idle))


def _at_least_a_segment(key: str, nbytes: int | None, settings: AllocatorSettings) -> None:
    if nbytes is not None and nbytes < settings.large_segment_bytes:
        least = settings.large_segment_bytes // MIB
        raise UsageError(f"{key} must be at least {least}, the size of a large segment, not {nbytes // MIB}")


def _known(key: str) -> None:
    keys = (*READERS, *WITHOUT_EFFECT)
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"torch takes {', '.join(sorted(keys))}"
        raise UsageError(f"unknown allocator setting {key!r}: {hint}")


def _large_segment(value: Value) -> dict[str, Any]:
    nbytes = whole("large_segment_size_mb", value) * MIB
    if nbytes <= MIN_LARGE_BYTES:
        raise UsageError(f"large_segment_size_mb must be more than {MIN_LARGE_BYTES // MIB}, not {value}")
    return {"large_segment_bytes": nbytes}


def _max_split(value: Value) -> dict[str, Any]:
    return {"max_split_bytes": whole("max_split_size_mb", value) * MIB}


def _max_non_split_rounding(value: Value) -> dict[str, Any]:
    return {"max_non_split_rounding_bytes": whole("max_non_split_rounding_mb", value) * MIB}


def _threshold(value: Value) -> dict[str, Any]:
    threshold = fraction("garbage_collection_threshold", value)
    if not 0 < threshold < 1:
        raise UsageError(f"garbage_collection_threshold lies between 0 and 1, both excluded, not {value}")
    return {"garbage_collection_threshold": threshold}


def _memory_fraction(value: Value) -> dict[str, Any]:
    share = fraction("per_process_memory_fraction", value)
    if not 0 <= share <= 1:
        raise UsageError(f"per_process_memory_fraction lies between 0 and 1, not {value}")
    return {"memory_fraction": share}


def _expandable(value: Value) -> dict[str, Any]:
    return {"expandable_segments": flag("expandable_segments", value)}


def _divisions(value: Value) -> dict[str, Any]:
    """One power of two, or ``[64:8,256:4,>:1]`` by size in MiB (``parseRoundUpPower2Divisions``).

    The first interval's value holds for all smaller sizes too; sizes that no interval names are not rounded;
    ``>`` holds for all above the interval before it.
    """
    if isinstance(value, str):
        return {"roundup_power2_divisions": (_power("divisions", value),) * INTERVALS}
    divisions = [0] * INTERVALS
    last, first = 0, True
    for boundary, text in value:
        count = 0 if text == "0" else _power("divisions", text)
        if boundary == ">":
            divisions[last + 1 :] = [count] * (INTERVALS - last - 1)
            continue
        index = min(_power("intervals", boundary).bit_length() - 1, INTERVALS - 1)
        if first:
            divisions[:index] = [count] * index
        divisions[index] = count
        last, first = index, False
    return {"roundup_power2_divisions": tuple(divisions)}


def _power(what: str, text: str) -> int:
    number = whole("roundup_power2_divisions", text)
    if number < 1 or number & (number - 1):
        raise UsageError(f"roundup_power2_divisions: the {what} must be powers of 2, not {text}")
    return number


READERS: dict[str, Callable[[Value], dict[str, Any]]] = {
    "large_segment_size_mb": _large_segment,
    "max_split_size_mb": _max_split,
    "max_non_split_rounding_mb": _max_non_split_rounding,
    "garbage_collection_threshold": _threshold,
    "roundup_power2_divisions": _divisions,
    "expandable_segments": _expandable,
    "per_process_memory_fraction": _memory_fraction,
}
"""For each key that changes memory, the fields that its value sets."""
