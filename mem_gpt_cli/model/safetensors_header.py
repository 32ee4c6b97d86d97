"""The header of a safetensors file: names, types and sizes of its tensors, read without torch.

The format is a JSON header and raw bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("<Q")
METADATA = "__metadata__"


class BrokenFileError(ValueError):
    """A file that is cut short or no safetensors file; its text says which."""


def header_of(path: Path) -> dict[str, Any]:
    """Each tensor's ``dtype``, ``shape`` and ``data_offsets``, in bytes from the end of the header.

    Under ``__metadata__`` the texts that were saved with them, if any.

    Raises:
        BrokenFileError: for a file that is cut short or no safetensors file.
        OSError: for a file that cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else None
        rest = path.stat().st_size - LENGTH.size
        if length is None or length > rest:
            raise BrokenFileError("it is cut short")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != METADATA]
            end = max(ends, default=0)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise BrokenFileError("its header is no safetensors header") from error
    if end > rest - length:
        raise BrokenFileError("it is cut short")
    return header
