"""Recorded histories of the real allocator, as ``torch.cuda.memory._snapshot()`` gives them.

``_record_memory_history`` makes the allocator note each of its actions; ``_snapshot`` returns them
(``device_traces``) with the state in which they ended (``segments``). The JSON form is the same dictionary
without stack frames, so ``History.of`` reads both. Source: ``torch/csrc/cuda/Module.cpp``
(``THCPModule_memorySnapshot``) and ``TraceEntry`` in ``c10/core/CachingDeviceAllocator.h``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mem_gpt_cli.allocator.settings import AllocatorSettings
from mem_gpt_cli.allocator.snapshot import BlockView, SegmentView
from mem_gpt_cli.errors import UnsupportedError, UsageError

SETTINGS_KEY = "PYTORCH_CUDA_ALLOC_CONF"
ENTRY_FIELDS = ("action", "addr", "device_free", "size", "stream")
BLOCK_FIELDS = ("address", "size", "requested_size", "state")
SEGMENT_FIELDS = (
    "device",
    "address",
    "total_size",
    "stream",
    "segment_type",
    "segment_pool_id",
    "is_expandable",
)
DEFAULT_POOL = (0, 0)


@dataclass(frozen=True)
class Entry:
    """One action of the allocator: ``alloc``, ``free_requested``, ``segment_alloc``, ``oom`` ...

    ``nbytes`` of an ``alloc`` or a ``free`` are those asked for, of an ``oom`` the rounded ones; ``address``
    of an ``oom`` is what the driver had left.
    """

    action: str
    address: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.action} of {self.nbytes:,} bytes at {self.address:#x}"


@dataclass(frozen=True)
class History:
    """The actions on one device, in order, the segments in which they ended, and the settings."""

    entries: tuple[Entry, ...]
    segments: tuple[SegmentView, ...]
    settings: AllocatorSettings

    @classmethod
    def of(cls, snapshot: Mapping[str, Any], device: int | None = None) -> History:
        """One device's part of a snapshot; ``None`` takes the device on which something was done.

        Raises ``UsageError`` for what is no snapshot, where the device did nothing or several did and none is
        named, ``UnsupportedError`` where several streams allocated or a private pool (a CUDA
        graph's) was in use.
        """
        try:
            device = _device_of(snapshot["device_traces"], device)
            trace = snapshot["device_traces"][device]
            segments = [each for each in snapshot["segments"] if each["device"] == device]
            _refuse_what_is_not_modelled(trace, segments)
            return cls(
                entries=tuple(map(_entry, trace)),
                segments=tuple(sorted(map(_segment, segments), key=lambda segment: segment.address)),
                settings=AllocatorSettings.parse(
                    snapshot.get("allocator_settings", {}).get(SETTINGS_KEY, ""), "the history's settings"
                ),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise UsageError(
                f"this is no snapshot of torch.cuda.memory._snapshot(): {type(error).__name__} {error}"
            ) from error


def read_history(path: Path, device: int | None = None) -> History:
    """A history from its JSON form; ``.gz`` files are unpacked."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return History.of(json.load(file), device)


def write_history(snapshot: Mapping[str, Any], path: Path, about: str = "") -> None:
    """Write a snapshot's trace and segments as JSON without stack frames; packed if ``path`` ends in ``.gz``.

    ``about`` says where it was recorded, for those who read the file.
    """
    slim = {
        "about": about,
        "allocator_settings": {SETTINGS_KEY: snapshot.get("allocator_settings", {}).get(SETTINGS_KEY, "")},
        "segments": [
            {
                **_only(segment, SEGMENT_FIELDS),
                "blocks": [_only(block, BLOCK_FIELDS) for block in segment["blocks"]],
            }
            for segment in snapshot["segments"]
        ],
        "device_traces": [
            [_only(entry, ENTRY_FIELDS) for entry in trace] for trace in snapshot["device_traces"]
        ],
    }
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(_lines(slim))


def _lines(slim: Mapping[str, Any]) -> Iterator[str]:
    """JSON with an action, or a segment, a line, so that files can be read and compared."""
    yield f'{{\n"about": {json.dumps(slim["about"])},\n'
    yield f'"allocator_settings": {json.dumps(slim["allocator_settings"])},\n'
    yield f'"segments": [\n{_rows(slim["segments"])}\n],\n"device_traces": ['
    yield ",".join(f"[\n{_rows(trace)}\n]" for trace in slim["device_traces"])
    yield "]\n}\n"


def _rows(rows: Iterable[Mapping[str, Any]]) -> str:
    return ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)


def _only(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _device_of(traces: Sequence[Sequence[Mapping[str, Any]]], wanted: int | None) -> int:
    """The device to replay; that a snapshot was taken (it notes itself) is nothing that it did."""
    active = [
        device
        for device, trace in enumerate(traces)
        if any(entry["action"] != "snapshot" for entry in trace) and wanted in (None, device)
    ]
    if len(active) == 1:
        return active[0]
    if active:
        raise UsageError(f"the history has actions on the devices {active}: name the one to read")
    of = "any device" if wanted is None else f"device {wanted}"
    raise UsageError(
        f"the history holds no action on {of}: record it around the run, as `memgpt profile --history` does"
    )


def _entry(fields: Mapping[str, Any]) -> Entry:
    address = fields["device_free"] if fields["action"] == "oom" else fields["addr"]
    return Entry(fields["action"], int(address), int(fields["size"]))


def _segment(fields: Mapping[str, Any]) -> SegmentView:
    return SegmentView(
        address=fields["address"],
        nbytes=fields["total_size"],
        small=fields["segment_type"] == "small",
        expandable=bool(fields.get("is_expandable", False)),
        blocks=tuple(_blocks(fields)),
    )


def _blocks(fields: Mapping[str, Any]) -> Iterator[BlockView]:
    """The blocks in order; torch leaves out the address before 2.0, and does not clear ``requested_size``."""
    address = fields["address"]
    for block in fields["blocks"]:
        live = block["state"] == "active_allocated"
        yield BlockView(address, block["size"], block["requested_size"] if live else 0, live)
        address += block["size"]


def _refuse_what_is_not_modelled(
    trace: Sequence[Mapping[str, Any]], segments: Sequence[Mapping[str, Any]]
) -> None:
    streams = {entry["stream"] for entry in trace if entry["action"] not in ("snapshot", "oom")}
    if len(streams) > 1:
        raise UnsupportedError(f"the history has {len(streams)} streams: only one is modelled")
    if any(tuple(segment.get("segment_pool_id", DEFAULT_POOL)) != DEFAULT_POOL for segment in segments):
        raise UnsupportedError("the history has private pools (of CUDA graphs or MemPool): none is modelled")
