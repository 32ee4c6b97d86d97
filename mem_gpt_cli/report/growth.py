"""How fast a part grows along an axis: the power that it follows, in words or short for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

FLAT = 0.02
"""Powers nearer to 0 than this are no growth."""


def exponent(values: Sequence[int], heights: Sequence[int]) -> float | None:
    """The power of the axis that the last step follows: the slope between the last two points of a plot with
    two logarithmic axes; ``None`` where there are not two of them, or one is 0.
    """
    if len(values) < 2 or not heights[-1] or not heights[-2]:
        return None
    return log(heights[-1] / heights[-2]) / log(values[-1] / values[-2])


def power(values: Sequence[int], heights: Sequence[int]) -> str:
    """``n^1.00`` and the like, ``constant`` or ``levels off``; nothing where there is no exponent."""
    measured = exponent(values, heights)
    if measured is None:
        return ""
    if abs(measured) < FLAT:
        return "levels off" if _moved(values, heights) else "constant"
    return f"n^{measured:.2f}"


def in_words(values: Sequence[int], heights: Sequence[int]) -> str:
    """``linearly (n^1.00)`` and the like: the power after "grows", with its name where it has one."""
    short, measured = power(values, heights), exponent(values, heights)
    if measured is None or short == "levels off":
        return short
    if short == "constant":
        return "not at all"
    names = {1: "linearly", 2: "quadratically"}
    name = names.get(round(measured)) if abs(measured - round(measured)) <= 0.1 else None
    return f"{name} ({short})" if name else f"as {short}"


def _moved(values: Sequence[int], heights: Sequence[int]) -> bool:
    """Whether a part that is flat at the end was another size at the beginning."""
    if not heights[0]:
        return True
    return abs(log(heights[-1] / heights[0]) / log(values[-1] / values[0])) >= FLAT
