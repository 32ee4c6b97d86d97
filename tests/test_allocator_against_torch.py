"""The model against the allocator of a CUDA build of torch, run without a GPU on invented requests.

Skipped unless ``MEMGPT_CUDA_TORCH`` names the folder of such a torch (2.11, CUDA 13) and
``MEMGPT_CUDA_HEADERS`` the folders of the CUDA toolkit's headers, as on ``PATH``.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from allocator_recorder import Recorder
from allocator_recorder.commands import MIB, at_random

from mem_gpt_cli.allocator import AllocatorSettings, CachingAllocator, History, OutOfMemory, Stats, compare

TORCH, HEADERS = os.environ.get("MEMGPT_CUDA_TORCH"), os.environ.get("MEMGPT_CUDA_HEADERS")
pytestmark = pytest.mark.skipif(
    not (TORCH and HEADERS), reason="MEMGPT_CUDA_TORCH and MEMGPT_CUDA_HEADERS are not set"
)

SETTINGS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:40",
    "max_split_size_mb:100,max_non_split_rounding_mb:40",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "roundup_power2_divisions:[1:4,2:8,4:2,16:1,>:8]",
    "roundup_power2_divisions:[>:8]",
    "large_segment_size_mb:32",
    "large_segment_size_mb:32,expandable_segments:True",
    "per_process_memory_fraction:0.5",
    "garbage_collection_threshold:0.6",
    "garbage_collection_threshold:0.6,per_process_memory_fraction:0.9",
    "garbage_collection_threshold:0.3,per_process_memory_fraction:0.5,max_split_size_mb:64",
    "garbage_collection_threshold:0.4,per_process_memory_fraction:0.5,expandable_segments:True",
    "expandable_segments:True,max_split_size_mb:64",
)
ROUNDS = 3


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    assert TORCH
    assert HEADERS
    folder = tmp_path_factory.mktemp("recorder")
    return Recorder(Path(TORCH), map(Path, HEADERS.split(os.pathsep)), folder)


def obey(commands: list[str], allocator: CachingAllocator) -> int:
    """The commands of the recorder, to the model; how often it was out of memory."""
    live: dict[str, Any] = {}
    deaths = 0
    for verb, *arguments in map(str.split, commands):
        if verb == "e":
            allocator.empty_cache()
        elif verb == "m":
            try:
                live[arguments[0]] = allocator.malloc(int(arguments[1]))
            except OutOfMemory:
                deaths += 1
        elif arguments[0] in live:
            allocator.free(live.pop(arguments[0]))
    return deaths


def figures(stats: Stats, names: dict[str, int]) -> dict[str, int]:
    return {name: getattr(stats, name) for name in names}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_same_requests_same_memory(recorder: Recorder, settings: str, seed: int) -> None:
    """With the same ascending addresses: every statistic, every death, every block at the end."""
    rng = random.Random(seed)
    device = rng.choice((256, 1024, 4096)) * MIB
    capacity = rng.choice((device, device * 7 // 10))
    commands = at_random(seed, 600)
    recorded = recorder.record(commands, settings, device_bytes=device, capacity=capacity)
    allocator = CachingAllocator(AllocatorSettings.parse(settings), capacity, device_bytes=device)
    assert obey(commands, allocator) == recorded["ooms"]
    assert figures(allocator.stats, recorded["stats"]) == recorded["stats"]
    assert allocator.snapshot() == History.of(recorded).segments


@pytest.mark.parametrize("settings", SETTINGS)
def test_histories_at_scattered_addresses(recorder: Recorder, settings: str) -> None:
    commands = [command for command in at_random(7, 600) if command != "e"]
    device = 512 * MIB
    recorded = recorder.record(commands, settings, device_bytes=device, scatter=1)
    comparison = compare(History.of(recorded), device_bytes=device)
    assert comparison.difference is None, str(comparison.difference)
    assert figures(comparison.stats, recorded["stats"]) == recorded["stats"]
