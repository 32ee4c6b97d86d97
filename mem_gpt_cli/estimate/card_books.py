"""The books of a run on a card: a storage weighs what its block in torch's caching allocator weighs."""

from __future__ import annotations

from mem_gpt_cli.allocator.block import Block
from mem_gpt_cli.allocator.caching import CachingAllocator
from mem_gpt_cli.allocator.replay import Fragmentation
from mem_gpt_cli.allocator.sizes import MIN_BLOCK_BYTES, round_up
from mem_gpt_cli.estimate.books import Ledger


class CardLedger(Ledger):
    """Live blocks by slot; for each phase the most that was reserved, and how that was made up.

    ``operation`` is the last that asked for memory: where the run ended, if the allocator ran out of it.
    """

    def __init__(self, allocator: CachingAllocator) -> None:
        super().__init__()
        self.allocator = allocator
        self.operation = ""
        self.reserved: dict[str, int] = {}
        self.fragmentation = Fragmentation(0, 0, 0, 0, 0)
        self.events = 0

    @property
    def phase(self) -> str:
        """The phase that the run is in."""
        return self._phase

    def enter(self, phase: str) -> None:
        """See ``Ledger.enter``."""
        super().enter(phase)
        self.reserved[phase] = max(self.reserved.get(phase, 0), self.allocator.stats.reserved)

    def allocate(self, slot: int, nbytes: int, operation: str) -> Block | None:
        """See ``Ledger.allocate``; raises ``OutOfMemory`` where the allocator does."""
        if not nbytes:
            return None
        self.operation = operation
        self.events += 1
        block, stats = self.allocator.malloc(nbytes), self.allocator.stats
        if stats.reserved > self.reserved[self._phase]:
            self.reserved[self._phase] = stats.reserved
        if stats.reserved > self.fragmentation.reserved:
            self.fragmentation = Fragmentation(
                self.events, stats.reserved, stats.allocated, stats.requested, stats.inactive_split
            )
        super().allocate(slot, block.nbytes, operation)
        return block

    def free(self, slot: int, nbytes: int, block: Block | None = None) -> None:  # noqa: ARG002
        """See ``Ledger.free``."""
        if block is not None:
            self.events += 1
            super().free(slot, block.nbytes)
            self.allocator.free(block)


class RoundedLedger(Ledger):
    """Storages as large as the least block that holds them: a card's bytes without the search for blocks."""

    def allocate(self, slot: int, nbytes: int, operation: str) -> Block | None:
        """See ``Ledger.allocate``."""
        return super().allocate(slot, round_up(nbytes, MIN_BLOCK_BYTES), operation)

    def free(self, slot: int, nbytes: int, block: Block | None = None) -> None:
        """See ``Ledger.free``."""
        super().free(slot, round_up(nbytes, MIN_BLOCK_BYTES), block)
