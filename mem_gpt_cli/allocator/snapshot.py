"""A picture of the allocator's memory at one moment, in the terms of ``torch.cuda.memory_snapshot``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mem_gpt_cli.allocator.block import Block, Segment


@dataclass(frozen=True)
class BlockView:
    """A block's place and size in bytes; ``requested`` is what was asked for in it, 0 for a free one."""

    address: int
    nbytes: int
    requested: int
    allocated: bool


@dataclass(frozen=True)
class SegmentView:
    """A stretch of memory with its blocks in order of address, which fill it."""

    address: int
    nbytes: int
    small: bool
    expandable: bool
    blocks: tuple[BlockView, ...]

    @property
    def allocated(self) -> int:
        """The bytes of its live blocks."""
        return sum(block.nbytes for block in self.blocks if block.allocated)


def view(segments: Iterable[Segment]) -> tuple[SegmentView, ...]:
    """The segments by address; an expandable one by stretches of mapped memory, as torch shows it."""
    stretches = [stretch for segment in segments for stretch in _stretches(segment)]
    return tuple(sorted(map(_segment_view, stretches), key=lambda segment: segment.address))


def _stretches(segment: Segment) -> Iterator[list[Block]]:
    stretch: list[Block] = []
    block: Block | None = segment.first
    while block is not None:
        if block.mapped:
            stretch.append(block)
        elif stretch:
            yield stretch
            stretch = []
        block = block.next
    if stretch:
        yield stretch


def _segment_view(blocks: list[Block]) -> SegmentView:
    return SegmentView(
        address=blocks[0].address,
        nbytes=sum(block.nbytes for block in blocks),
        small=blocks[0].pool.small,
        expandable=blocks[0].segment.page is not None,
        blocks=tuple(
            BlockView(block.address, block.nbytes, block.requested if block.allocated else 0, block.allocated)
            for block in blocks
        ),
    )
