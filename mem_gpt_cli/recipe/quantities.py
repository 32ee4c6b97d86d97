"""Sizes as people write them: ``24GiB``, ``80 GB``, ``512MiB``."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(value: Any) -> int:
    """Bytes of a size: an integer, or a number with B, kB to TB (powers of 1000) or KiB to TiB (of 1024).

    Raises:
        ValueError: for anything else; a bare ``G`` or ``M`` is refused, because it does not say which.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    unit = match[2].lower() if match else ""
    if match is None or unit not in _UNITS:
        raise ValueError(
            f"{value!r} is not a size: write bytes, or a number with GiB, MiB, GB or MB, e.g. 24GiB"
        )
    return round(float(match[1]) * _UNITS[unit])
