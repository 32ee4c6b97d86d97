"""The memory of cub's radix sort, which torch uses to sort and to add up by index.

Source: ``DispatchRadixSort`` in cub/device/dispatch/dispatch_radix_sort.cuh, the one-sweep variant of compute
capability 8.0 and newer; ``radix_sort_pairs`` in ATen/cuda/cub.cu.
"""

from __future__ import annotations

_DIGIT_BITS = 8
_DIGITS = 1 << _DIGIT_BITS
_ALIGNMENT = 256
_ONE_TILE = 2304
_PAIRS_A_TILE = {1: 6144, 2: 5760, 4: 5376, 8: 4224}


def radix_sort_bytes(count: int, key: int, value: int, passes: int) -> int:
    """Bytes for sorting ``count`` pairs; one byte where a single block sorts them all.

    The sizes of tiles, by bytes of a key, are those of Hopper; others differ by a few KiB.

    Args:
        count: pairs of a key and a value.
        key, value: bytes of one.
        passes: bytes of a key that are looked at.
    """
    if count <= _ONE_TILE:
        return 1
    histograms = 8 * _DIGITS * passes
    lookback = 4 * _DIGITS * -(-count // _PAIRS_A_TILE[key])
    counters = _aligned(4 * passes)
    return _aligned(key * count) + _aligned(value * count) + histograms + lookback + counters + _ALIGNMENT - 1


def significant_passes(largest: int) -> int:
    """Passes that sort indices up to ``largest``."""
    return max(1, -(-largest.bit_length() // _DIGIT_BITS))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
