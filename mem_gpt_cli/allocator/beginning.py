"""The state in which a history begins, found by undoing its actions from the state in which it ends.

A history that was recorded from the start of a process begins with nothing. One that was not (recording began
later, or its buffer overflowed) begins with segments and live blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mem_gpt_cli.allocator.history import History
from mem_gpt_cli.allocator.settings import AllocatorSettings
from mem_gpt_cli.allocator.sizes import SMALL_BYTES, SMALL_SEGMENT_BYTES
from mem_gpt_cli.allocator.snapshot import BlockView, SegmentView
from mem_gpt_cli.errors import UnsupportedError


def beginning(history: History) -> tuple[SegmentView, ...]:
    """The segments with which a history begins, by address.

    The size of a block that lived then and was freed later is not recorded, only what was asked for in it: it
    is taken as that, rounded, with the rest up to the next block where that is too small to be a free block
    (``_size``). Raises ``UnsupportedError`` for expandable segments that were mapped before the history.
    """
    segments = {segment.address: segment.nbytes for segment in history.segments if not segment.expandable}
    blocks = {
        block.address: block for segment in history.segments for block in segment.blocks if block.allocated
    }
    mapped = sum(segment.nbytes for segment in history.segments if segment.expandable)
    for entry in reversed(history.entries):
        match entry.action:
            case "alloc":
                blocks.pop(entry.address, None)
            case "free_completed":
                blocks[entry.address] = BlockView(entry.address, 0, entry.nbytes, allocated=True)
            case "segment_alloc":
                segments.pop(entry.address, None)
            case "segment_free":
                segments[entry.address] = entry.nbytes
            case "segment_map":
                mapped -= entry.nbytes
            case "segment_unmap":
                mapped += entry.nbytes
    if mapped:
        raise UnsupportedError(
            f"{mapped:,} bytes of expandable segments were mapped before the history begins: "
            "record from the start of the process, with a buffer that holds all"
        )
    return tuple(
        _segment(address, nbytes, blocks.values(), history.settings)
        for address, nbytes in sorted(segments.items())
    )


def _segment(
    address: int, nbytes: int, live: Iterable[BlockView], settings: AllocatorSettings
) -> SegmentView:
    """A segment cut into its live blocks and the free ones between them."""
    small = nbytes == SMALL_SEGMENT_BYTES
    end = address + nbytes
    inside = sorted(
        (block for block in live if address <= block.address < end), key=lambda block: block.address
    )
    return SegmentView(
        address, nbytes, small, False, tuple(_cut(address, end, inside, small=small, settings=settings))
    )


def _cut(
    at: int, end: int, live: list[BlockView], *, small: bool, settings: AllocatorSettings
) -> Iterator[BlockView]:
    limits = [block.address for block in live[1:]] + [end]
    for block, limit in zip(live, limits, strict=False):
        if block.address > at:
            yield BlockView(at, block.address - at, 0, allocated=False)
        nbytes = block.nbytes or _size(block.requested, limit - block.address, small, settings)
        yield BlockView(block.address, nbytes, block.requested, allocated=True)
        at = block.address + nbytes
    if at < end:
        yield BlockView(at, end - at, 0, allocated=False)


def _size(requested: int, room: int, small: bool, settings: AllocatorSettings) -> int:
    """The size of a block up to whose end or beyond ``room`` bytes were not live.

    In the large pool a remainder of at most 1 MiB is not split off, so free blocks are larger than that:
    where less is left, it is a part of the block. So is all of it from the splitting limit on.
    """
    nbytes = settings.block_bytes(requested)
    limit = settings.max_split_bytes
    if not small and (room - nbytes <= SMALL_BYTES or (limit is not None and nbytes >= limit)):
        return room
    return nbytes
