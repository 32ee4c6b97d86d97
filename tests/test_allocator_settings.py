"""PYTORCH_CUDA_ALLOC_CONF as torch reads it."""

from __future__ import annotations

import pytest

from mem_gpt_cli.allocator import AllocatorSettings
from mem_gpt_cli.errors import UnsupportedError, UsageError

MIB = 1 << 20


def test_nothing_is_the_default() -> None:
    assert AllocatorSettings.parse("") == AllocatorSettings()
    assert AllocatorSettings.from_environment({}) == AllocatorSettings()


def test_each_key_sets_its_field() -> None:
    settings = AllocatorSettings.parse(
        " expandable_segments:True, max_split_size_mb:128, max_non_split_rounding_mb:64,"
        "large_segment_size_mb:32,"
        "garbage_collection_threshold:0.8, per_process_memory_fraction:0.5, roundup_power2_divisions:4"
    )
    assert settings == AllocatorSettings(
        expandable_segments=True,
        max_split_bytes=128 * MIB,
        max_non_split_rounding_bytes=64 * MIB,
        large_segment_bytes=32 * MIB,
        garbage_collection_threshold=0.8,
        memory_fraction=0.5,
        roundup_power2_divisions=(4,) * 16,
    )


def test_the_rounding_of_unsplit_blocks_follows_the_size_of_large_segments() -> None:
    assert AllocatorSettings.parse("large_segment_size_mb:64").max_non_split_rounding_bytes == 64 * MIB


def test_the_environments_older_name_comes_first() -> None:
    both = {
        "PYTORCH_ALLOC_CONF": "max_split_size_mb:100",
        "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:200",
    }
    assert AllocatorSettings.from_environment(both).max_split_bytes == 200 * MIB
    del both["PYTORCH_CUDA_ALLOC_CONF"]
    assert AllocatorSettings.from_environment(both).max_split_bytes == 100 * MIB


@pytest.mark.parametrize(
    ("text", "divisions"),
    [
        ("[256:1,512:2,1024:4,>:8]", (1,) * 8 + (1, 2, 4) + (8,) * 5),
        ("[64:8,128:2,256:2,512:2,1024:1,>:1]", (8,) * 7 + (2, 2, 2) + (1,) * 6),
        ("[1:4,4:2]", (4, 0, 2) + (0,) * 13),
        ("[65536:2]", (2,) * 16),
    ],
)
def test_divisions_by_size(text: str, divisions: tuple[int, ...]) -> None:
    assert AllocatorSettings.parse(f"roundup_power2_divisions:{text}").roundup_power2_divisions == divisions


@pytest.mark.parametrize(
    "key",
    [
        "release_lock_on_cudamalloc:True",
        "pinned_use_background_threads:True",
        "pinned_use_cuda_host_register:True",
        "pinned_num_register_threads:8",
        "pinned_reserve_segment_size_mb:8",
        "graph_capture_record_stream_reuse:True",
        "backend:native",
    ],
)
def test_keys_that_change_no_memory_are_named(key: str) -> None:
    settings = AllocatorSettings.parse(f"{key},max_split_size_mb:40")
    assert settings.without_effect == (key.split(":")[0],)
    assert settings.max_split_bytes == 40 * MIB


def test_a_threshold_without_a_memory_fraction_collects_nothing() -> None:
    alone = AllocatorSettings.parse("garbage_collection_threshold:0.5")
    assert not alone.collects_garbage
    assert alone.without_effect == ("garbage_collection_threshold",)
    below = AllocatorSettings.parse("garbage_collection_threshold:0.5,per_process_memory_fraction:0.9")
    assert below.collects_garbage
    assert below.without_effect == ()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("expandable_segment:True", "did you mean 'expandable_segments'"),
        ("max_split_size:40", "did you mean 'max_split_size_mb'"),
        ("roundup_bypass_threshold_mb:1", "unknown allocator setting"),
        ("max_split_size_mb:2", "at least 20"),
        ("large_segment_size_mb:64,max_split_size_mb:40", "at least 64"),
        ("large_segment_size_mb:10", "more than 10"),
        ("max_non_split_rounding_mb:5", "at least 20"),
        ("garbage_collection_threshold:1.2", "between 0 and 1"),
        ("garbage_collection_threshold:much", "takes a number"),
        ("per_process_memory_fraction:2", "between 0 and 1"),
        ("roundup_power2_divisions:3", "powers of 2"),
        ("roundup_power2_divisions:0", "powers of 2"),
        ("roundup_power2_divisions:[3:2]", "intervals must be powers of 2"),
        ("roundup_power2_divisions:[256]", "size:value"),
        ("expandable_segments:true", "True or False"),
        ("expandable_segments", "not a key:value pair"),
        ("backend:magic", "native or cudaMallocAsync"),
        ("max_split_size_mb:[1:2]", "whole number"),
    ],
)
def test_what_torch_refuses_is_refused_with_the_mend(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as raised:
        AllocatorSettings.from_environment({"PYTORCH_CUDA_ALLOC_CONF": text})
    assert str(raised.value).startswith("PYTORCH_CUDA_ALLOC_CONF: ")


def test_the_drivers_own_pool_is_not_modelled() -> None:
    with pytest.raises(UnsupportedError, match="not modelled"):
        AllocatorSettings.parse("backend:cudaMallocAsync,expandable_segments:True")
