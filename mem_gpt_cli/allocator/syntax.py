"""The text of allocator settings: ``key:value`` pairs between commas, a value may be ``[a:b,c:d]``.

torch's own reader (``ConfigTokenizer`` in ``c10/core/AllocatorConfig.h``) lets some malformed texts pass
(``12abc`` is 12); this one refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mem_gpt_cli.errors import UsageError

Value = str | tuple[tuple[str, str], ...]
"""A single word, or the pairs of a list."""

PAIR = re.compile(r"(?P<key>[^,:\[\]]+):(?:\[(?P<list>[^\[\]]*)\]|(?P<word>[^,:\[\]]+))(?:,|$)")


def pairs(text: str) -> Iterator[tuple[str, Value]]:
    """Each key with its value; white space does not count, nor does a comma at the end."""
    rest = re.sub(r"\s", "", text)
    while rest:
        match = PAIR.match(rest)
        if match is None:
            raise UsageError(f"{rest!r} is not a key:value pair of allocator settings")
        listed = match["list"]
        yield match["key"], match["word"] if listed is None else tuple(_listed(listed))
        rest = rest[match.end() :]


def _listed(text: str) -> Iterator[tuple[str, str]]:
    for item in text.split(","):
        boundary, colon, value = item.partition(":")
        if not (boundary and colon and value):
            raise UsageError(f"[{text}] is not a list of size:value pairs")
        yield boundary, value


def whole(key: str, value: Value) -> int:
    """A number without sign or fraction."""
    if not (isinstance(value, str) and value.isdecimal()):
        raise UsageError(f"{key} takes a whole number, not {value!r}")
    return int(value)


def fraction(key: str, value: Value) -> float:
    """A number with a fraction."""
    try:
        return float(value)  # type: ignore[arg-type]  # a list fails as a word without number does
    except (TypeError, ValueError):
        raise UsageError(f"{key} takes a number, not {value!r}") from None


def flag(key: str, value: Value) -> bool:
    """``True`` or ``False``, written so."""
    if value not in ("True", "False"):
        raise UsageError(f"{key} is True or False, not {value!r}")
    return value == "True"
