"""Reads a safetensors file through a memory map of its own, tensor by tensor.

The library's reader maps the file by torch, whose allocator then reports the whole file as allocated: that
would count the weights twice. The format is a JSON header and raw bytes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.model.safetensors_header import LENGTH, METADATA, BrokenFileError, header_of

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_header(path: Path) -> dict[str, Any]:
    """Each tensor's ``dtype``, ``shape`` and ``data_offsets``, in bytes from the end of the header.

    Raises:
        EnvironmentUnavailableError: for a file that is cut short or no safetensors file.
    """
    try:
        header = header_of(path)
    except BrokenFileError as error:
        raise _unreadable(path, str(error)) from error
    header.pop(METADATA, None)
    return header


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor by its name, as a view of the mapped file; what is written to it stays in memory.

    Raises:
        EnvironmentUnavailableError: for a broken file, or a number format that is not read here.
    """
    header = read_header(path)
    if not header:
        return
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # each tensor keeps the map alive
    base = LENGTH.size + LENGTH.unpack_from(mapped)[0]
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise _unreadable(path, f"{name!r} is stored as {entry['dtype']}, which is not read here")
        first, end = entry["data_offsets"]
        if end == first:
            yield name, torch.empty(entry["shape"], dtype=dtype)
            continue
        count = (end - first) // dtype.itemsize
        yield (
            name,
            torch.frombuffer(mapped, dtype=dtype, offset=base + first, count=count).view(entry["shape"]),
        )


def _unreadable(path: Path, why: str) -> EnvironmentUnavailableError:
    return EnvironmentUnavailableError(
        f"{path} cannot be read: {why}; fetch {path.parent.name} again, or use model.weights=random"
    )
