"""The head of a GGUF file: its metadata and the shapes of its tensors, without the tensors.

The ``gguf`` package reads the same, but keeps an array for each token of the vocabulary: seconds for a file
whose head takes milliseconds. A test holds the two together. Source of the format: the GGUF specification,
version 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")))
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufHead:
    """``metadata`` less its arrays of texts (tokens, merges).

    By tensor: ``shapes``, outermost first, and ``types``, the number of the format it is stored in.
    """

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]


class _Cursor:
    """A place in a file that moves on as values are read."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._offset = 0

    def take(self, size: int) -> bytes:
        end = self._offset + size
        if size < 0 or end > len(self._data):
            raise ValueError("the file ends in the middle of its head")
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def scalar(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        """One value of a numbered type; an array of texts is passed over and gives ``None``."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(self._format(kind))
        items, count = self.scalar("I"), self.scalar("Q")
        if items == _STRING:
            for _ in range(count):
                self.take(self.scalar("Q"))
            return None
        form = self._format(items)
        return list(struct.unpack(f"<{count}{form}", self.take(count * struct.calcsize(f"<{form}"))))

    @staticmethod
    def _format(kind: int) -> str:
        form = _SCALARS.get(kind)
        if form is None:
            raise ValueError(f"it has a value of the unknown type {kind}")
        return form


def read_head(path: Path) -> GgufHead:
    """Read a little-endian GGUF file's head.

    Raises:
        ValueError: where the file is not one, or ends too early.
        OSError: where it cannot be opened.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Cursor(data))


def _read(cursor: _Cursor) -> GgufHead:
    cursor.take(len(_MAGIC))
    version, tensors, pairs = cursor.scalar("I"), cursor.scalar("Q"), cursor.scalar("Q")
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}, those that are read are 2 and 3, little-endian")
    metadata = {}
    for _ in range(pairs):
        key = cursor.text()
        value = cursor.value(cursor.scalar("I"))
        if value is not None:
            metadata[key] = value
    shapes, types = {}, {}
    for _ in range(tensors):
        name = cursor.text()
        dimensions = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))]
        types[name], _offset = cursor.scalar("I"), cursor.scalar("Q")
        shapes[name] = tuple(reversed(dimensions))
    return GgufHead(metadata, shapes, types)
