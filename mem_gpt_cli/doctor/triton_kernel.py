"""The smallest kernel in triton; only the child process that tries it imports this file."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def add_one(source, target, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """``target = source + 1``, ``block`` elements for each program."""
    places = tl.program_id(0) * block + tl.arange(0, block)
    inside = places < count
    tl.store(target + places, tl.load(source + places, mask=inside) + 1, mask=inside)
