"""The memory of cub's radix sort, which torch uses to sort and to add up by index.

Source: ``DispatchRadixSort`` in cub/device/dispatch/dispatch_radix_sort.cuh, the one-sweep variant of compute
capability 8.0 and newer; ``radix_sort_pairs`` in ATen/cuda/cub.cu.
"""

from __future__ import annotations

from mem_gpt_cli.devices.gpu import Gpu

_DIGIT_BITS = 8
_DIGITS = 1 << _DIGIT_BITS
_ALIGNMENT = 256
_ONE_TILE = 2304
_SINCE_HOPPER = {1: 5632, 2: 5632, 4: 5376, 8: 4608}
_BEFORE_HOPPER = {1: 3072, 2: 3072, 4: 3072, 8: 3840}
"""Pairs that a block sorts, by bytes of a key; cub tunes them for each generation, here for int64 values."""


def radix_sort_bytes(gpu: Gpu, count: int, key: int, value: int, passes: int) -> int:
    """Bytes for sorting ``count`` pairs; one byte where a single block sorts them all.

    Args:
        gpu: its generation decides how many pairs a block takes.
        count: pairs of a key and a value.
        key, value: bytes of one.
        passes: bytes of a key that are looked at; a single pass needs no second copy of the pairs.
    """
    if count <= _ONE_TILE:
        return 1
    tile = (_SINCE_HOPPER if gpu.capability >= (9, 0) else _BEFORE_HOPPER)[key]
    histograms = 8 * _DIGITS * passes
    lookback = 4 * _DIGITS * -(-count // tile)
    counters = _aligned(4 * passes)
    pairs = _aligned(key * count) + _aligned(value * count) if passes > 1 else 0
    return pairs + histograms + lookback + counters + _ALIGNMENT - 1


def significant_passes(largest: int) -> int:
    """Passes that sort indices up to ``largest``."""
    return max(1, -(-largest.bit_length() // _DIGIT_BITS))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
