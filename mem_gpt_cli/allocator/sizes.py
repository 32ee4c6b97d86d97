"""The sizes that the caching allocator rounds to.

From torch 2.11, ``c10/core/AllocatorConfig.h`` (the constants) and ``c10/cuda/CUDACachingAllocator.cpp``
(``roundup_power2_next_division``).
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

MIN_BLOCK_BYTES = 512
"""Every block is a multiple of this (``kMinBlockSize``)."""

SMALL_BYTES = MIB
"""The largest block of the small pool (``kSmallSize``)."""

SMALL_SEGMENT_BYTES = 2 * MIB
"""What the small pool asks of the driver, and its page in expandable segments (``kSmallBuffer``)."""

MIN_LARGE_BYTES = 10 * MIB
"""From this size on a segment is made to measure (``kMinLargeAlloc``)."""

LARGE_ROUNDING_BYTES = 2 * MIB
"""What a segment made to measure is rounded up to (``kRoundLarge``)."""

LARGE_SEGMENT_BYTES = 20 * MIB
"""The default segment of blocks between 1 and 10 MiB, and the large pool's page in expandable segments."""


def round_up(nbytes: int, multiple: int) -> int:
    """``nbytes`` rounded up to a multiple."""
    return -(-nbytes // multiple) * multiple


def round_up_power_of_two(nbytes: int, divisions: int) -> int:
    """The next of ``divisions`` equal steps between two powers of two (``roundup_power2_next_division``).

    1200 with 4 divisions lies between 1024 and 2048, whose steps are 1280, 1536 and 1792: 1280.
    """
    floor = 1 << (nbytes.bit_length() - 1)
    if nbytes == floor:
        return nbytes
    step = floor >> (divisions.bit_length() - 1)
    return round_up(nbytes, step) if step else 2 * floor
