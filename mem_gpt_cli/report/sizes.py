"""Bytes as people read them: binary units, named as such."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def render_bytes(count: int | None, *, signed: bool = False) -> str:
    """Three or four significant digits and a binary unit, e.g. ``5.80 GiB``; ``""`` for ``None``.

    ``signed`` puts a plus before a positive count. Below 1 KiB the count is exact.
    """
    if count is None:
        return ""
    sign = "-" if count < 0 else "+" if signed and count > 0 else ""
    size, unit = float(abs(count)), 0
    # 1023.5 and more would be rounded to 1024: that is 1 of the next unit.
    while size >= (1024 if unit == 0 else 1023.5) and unit + 1 < len(_UNITS):
        size, unit = size / 1024, unit + 1
    if unit == 0:
        return f"{sign}{abs(count)} B"
    decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{sign}{size:.{decimals}f} {_UNITS[unit]}"


def render_share(part: int, whole: int) -> str:
    """``part`` of ``whole`` in percent, ``<1%`` for little; ``""`` for nothing."""
    if part == 0:
        return ""
    percent = 100 * part / whole
    return "<1%" if 0 < percent < 1 else f"{percent:.0f}%"
