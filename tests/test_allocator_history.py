"""Histories of the real allocator, and whether the model does what it did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mem_gpt_cli.allocator import (
    AllocatorSettings,
    CachingAllocator,
    Comparison,
    Entry,
    History,
    compare,
    read_history,
    write_history,
)
from mem_gpt_cli.errors import UnsupportedError, UsageError

FOLDER = Path(__file__).parent / "allocator_histories"
FILES = sorted(FOLDER.glob("*.json*"))
DEVICE_BYTES = 256 << 20
"""Of the device that the files were recorded on."""

RECORDED_ON_GPUS = [
    json.loads(line)
    for path in sorted((FOLDER.parent.parent / "results" / "gpu").glob("*/histories.jsonl"))
    for line in path.read_text().splitlines()
]


def history_of(name: str) -> History:
    return read_history(FOLDER / f"{name}.json")


def compared(history: History) -> Comparison:
    return compare(history, device_bytes=DEVICE_BYTES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_model_does_what_was_recorded(path: Path) -> None:
    """Each allocation in its place, each call to the driver, and the segments at the end, block by block."""
    history = read_history(path)
    comparison = compared(history)
    assert comparison.difference is None, str(comparison.difference)
    actions = [entry.action for entry in history.entries]
    assert comparison.actions == len(actions) > 100
    assert comparison.allocations == actions.count("alloc") > 40
    assert comparison.driver_calls == sum(map(is_call, history.entries)) > 5
    assert comparison.stats.reserved == sum(segment.nbytes for segment in history.segments)
    assert comparison.stats.allocated == sum(segment.allocated for segment in history.segments)


@pytest.mark.parametrize("recorded", RECORDED_ON_GPUS, ids=lambda recorded: recorded["name"])
def test_the_model_does_what_a_gpu_did(recorded: dict[str, Any]) -> None:
    """The histories that the GPU kit brings home: each recorded from the start of its process."""
    comparison = compare(History.of(recorded))
    assert comparison.difference is None, str(comparison.difference)
    assert comparison.stats.allocated_peak == recorded["measured"]["max_allocated_bytes"]
    assert comparison.stats.reserved_peak == recorded["measured"]["max_reserved_bytes"]


def test_the_files_hold_what_they_are_there_for() -> None:
    actions = {path.stem: {entry.action for entry in read_history(path).entries} for path in FILES}
    for name in ("random", "random_max_split", "random_garbage"):
        assert {"oom", "segment_free"} <= actions[name]
    assert {"oom", "segment_unmap"} <= actions["random_expandable"]
    assert len(FILES) >= 8


@pytest.mark.parametrize("name", ["training", "random", "random_roundup", "random_large_segment"])
def test_a_history_may_begin_anywhere(name: str) -> None:
    """The live blocks of its beginning come out of the segments at its end."""
    history = history_of(name)
    for start in range(0, len(history.entries), 7):
        later = replace(history, entries=history.entries[start:])
        assert compared(later).difference is None, f"from action {start}"


def test_expandable_segments_must_be_recorded_from_the_start() -> None:
    history = history_of("training_expandable")
    with pytest.raises(UnsupportedError, match="record from the start"):
        compared(replace(history, entries=history.entries[5:]))


def is_call(entry: Entry) -> bool:
    """Whether the entry is a call to the driver."""
    return entry.action.startswith("segment_")


def changed(history: History, index: int, **fields: Any) -> History:
    entries = list(history.entries)
    entries[index] = replace(entries[index], **fields)
    return replace(history, entries=tuple(entries))


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("alloc", {"address": 1 << 50}),
        ("alloc", {"nbytes": 300 << 20}),
        ("segment_alloc", {"address": 1 << 50}),
        ("segment_alloc", {"nbytes": 22 << 20}),
        ("segment_free", {"nbytes": 22 << 20}),
    ],
)
def test_a_difference_is_found_where_it_is(action: str, fields: dict[str, int]) -> None:
    history = history_of("random")
    index = [entry.action for entry in history.entries].index(action)
    difference = compared(changed(history, index, **fields)).difference
    assert difference is not None
    served = next(
        number for number in range(index, len(history.entries)) if not is_call(history.entries[number])
    )
    assert difference.entry == served, "a call to the driver is compared at the request that it serves"
    assert str(difference).startswith(f"action {difference.entry}: recorded ")


def test_a_segment_too_many_or_too_few_is_found() -> None:
    history = history_of("random")
    index = [entry.action for entry in history.entries].index("segment_free")
    gone = replace(history, entries=history.entries[:index] + history.entries[index + 1 :])
    assert compared(gone).difference is not None
    again = Entry("segment_alloc", 1 << 50, 2 << 20)
    assert compared(replace(history, entries=(*history.entries[:9], again, *history.entries[9:]))).difference


def test_other_settings_make_a_difference() -> None:
    for name in ("random_max_split", "random_roundup", "random_garbage", "random_large_segment"):
        history = replace(history_of(name), settings=AllocatorSettings())
        assert compared(history).difference is not None, name


def test_the_end_is_compared() -> None:
    history = history_of("training")
    assert compared(replace(history, segments=history.segments[:-1])).difference is not None


def snapshot_of(path: Path) -> dict[str, Any]:
    """The dictionary that torch gives, with the stack frames that it holds."""
    snapshot: dict[str, Any] = json.loads(path.read_text())
    frames = [{"filename": "train.py", "line": 1, "name": "step"}]
    for entry in snapshot["device_traces"][0]:
        entry.update(frames=frames, time_us=1, compile_context="N/A", user_metadata="")
    for segment in snapshot["segments"]:
        segment.update(frames=frames, allocated_size=0, active_size=0, requested_size=0)
        for block in segment["blocks"]:
            block["frames"] = frames
    snapshot["allocator_settings"].update(max_split_size=-1, expandable_segments=False)
    return snapshot | {"external_annotations": []}


@pytest.mark.parametrize("name", ["history.json", "history.json.gz"])
def test_torchs_own_form_is_read_and_written_without_frames(tmp_path: Path, name: str) -> None:
    snapshot = snapshot_of(FOLDER / "random.json")
    write_history(snapshot, tmp_path / name, "invented")
    assert read_history(tmp_path / name) == History.of(snapshot) == history_of("random")
    if name.endswith(".json"):
        text = (tmp_path / name).read_text()
        assert "train.py" not in text
        assert json.loads(text)["about"] == "invented"


def test_older_torch_gives_blocks_without_addresses() -> None:
    snapshot = snapshot_of(FOLDER / "random.json")
    for segment in snapshot["segments"]:
        for block in segment["blocks"]:
            del block["address"]
    assert History.of(snapshot) == history_of("random")


def test_what_is_no_snapshot_is_refused() -> None:
    with pytest.raises(UsageError, match="no snapshot"):
        History.of({})
    with pytest.raises(UsageError, match="device 3"):
        History.of(snapshot_of(FOLDER / "random.json"), device=3)


def test_the_device_with_actions_is_read() -> None:
    """A run on ``cuda:1`` leaves device 0 without any, and replaying nothing would agree with everything."""
    snapshot = snapshot_of(FOLDER / "random.json")
    (trace,) = snapshot["device_traces"]
    for segment in snapshot["segments"]:
        segment["device"] = 1
    idle = [{"action": "snapshot", "addr": 0, "size": 0, "stream": 0}]
    snapshot["device_traces"] = [idle, trace]
    assert History.of(snapshot) == History.of(snapshot, device=1) == history_of("random")
    with pytest.raises(UsageError, match="no action on device 0"):
        History.of(snapshot, device=0)
    with pytest.raises(UsageError, match=r"devices \[0, 1\]"):
        History.of(snapshot | {"device_traces": [trace, trace]})
    with pytest.raises(UsageError, match="no action on any device"):
        History.of(snapshot | {"device_traces": [[], idle]})


def test_streams_and_private_pools_are_refused() -> None:
    snapshot = snapshot_of(FOLDER / "random.json")
    snapshot["device_traces"][0][1]["stream"] = 94
    with pytest.raises(UnsupportedError, match="2 streams"):
        History.of(snapshot)
    snapshot = snapshot_of(FOLDER / "random.json")
    snapshot["segments"][0]["segment_pool_id"] = [0, 1]
    with pytest.raises(UnsupportedError, match="private pools"):
        History.of(snapshot)


def test_an_emptied_cache_is_told_from_a_retry() -> None:
    """Segments given back before a request that the cache would have met."""
    allocator = CachingAllocator()
    first, second = allocator.malloc(30 << 20), allocator.malloc(40 << 20)
    at, other = first.address, second.address
    entries = (
        Entry("segment_alloc", at, 30 << 20),
        Entry("alloc", at, 30 << 20),
        Entry("segment_alloc", other, 40 << 20),
        Entry("alloc", other, 40 << 20),
        Entry("free_requested", at, 30 << 20),
        Entry("free_completed", at, 30 << 20),
        Entry("segment_free", at, 30 << 20),
        Entry("segment_alloc", at, 30 << 20),
        Entry("alloc", at, 30 << 20),
    )
    comparison = compare(History(entries, allocator.snapshot(), AllocatorSettings()))
    assert comparison.difference is None
    assert comparison.stats.retries == 0
