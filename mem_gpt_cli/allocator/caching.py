"""A model of torch's caching allocator on CUDA: one device, one stream, no private pools.

Each method names its counterpart in ``DeviceCachingAllocator`` of torch 2.11
(``c10/cuda/CUDACachingAllocator.cpp``). Given the same calls in the same order it cuts the same blocks out of
the same segments.
"""

from __future__ import annotations

from mem_gpt_cli.allocator.block import Block, Pool, Segment
from mem_gpt_cli.allocator.driver import AscendingDriver, Driver
from mem_gpt_cli.allocator.expandable import map_block, room_for, unmap_block
from mem_gpt_cli.allocator.garbage import collect_garbage
from mem_gpt_cli.allocator.out_of_memory import OutOfMemory
from mem_gpt_cli.allocator.settings import AllocatorSettings
from mem_gpt_cli.allocator.sizes import MIN_BLOCK_BYTES, SMALL_BYTES
from mem_gpt_cli.allocator.snapshot import SegmentView, view
from mem_gpt_cli.allocator.stats import Stats
from mem_gpt_cli.errors import UsageError


class CachingAllocator:
    """Hands out blocks and keeps what comes back.

    ``capacity`` is how many bytes of segments the driver gives before it refuses (``None``: any number);
    ``driver`` replaces the synthetic one and its capacity. ``device_bytes`` is the memory of the device, of
    which the settings' ``memory_fraction`` is taken; it defaults to ``capacity``.
    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        capacity: int | None = None,
        *,
        device_bytes: int | None = None,
        driver: Driver | None = None,
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.stats = Stats()
        self.driver = driver or AscendingDriver(capacity)
        self.capacity = capacity
        self.device_bytes = capacity if device_bytes is None else device_bytes
        self.allowed = self._allowed()
        self.small = Pool(small=True)
        self.large = Pool(small=False)
        self.segments: dict[int, Segment] = {}

    def malloc(self, nbytes: int) -> Block:
        """A block for ``nbytes`` bytes; raises ``OutOfMemory`` where torch would (``malloc``)."""
        size = self.settings.block_bytes(nbytes)
        pool = self.small if size <= SMALL_BYTES else self.large
        block = self._cached(pool, size)
        if block is None:
            block = self._fresh(pool, size)
        if block is None:
            raise self._out_of_memory(nbytes, size)
        return self._hand_out(block, size, nbytes)

    def free(self, block: Block) -> None:
        """Take a block back and join it with the free blocks beside it (``free_block``)."""
        if not block.allocated:
            raise ValueError(f"the block at {block.address:#x} is not allocated")
        block.allocated = False
        self.stats.free(block.nbytes, block.requested)
        split_bytes, split_blocks = 0, 0
        for neighbour in (block.previous, block.next):
            if neighbour is not None and not neighbour.allocated and neighbour.mapped:
                block.pool.remove(neighbour)
                block.absorb(neighbour)
                split_bytes -= neighbour.nbytes
                split_blocks -= 1
        block.pool.add(block)
        if block.segment.page is None:
            if block.previous is not None or block.next is not None:
                split_bytes += block.nbytes
                split_blocks += 1
            self.stats.split(split_bytes, split_blocks)

    def empty_cache(self) -> None:
        """Give every segment without a live block back (``emptyCache``, ``release_cached_blocks``)."""
        for pool in (self.large, self.small):
            expandable = []
            for block in tuple(pool.free):
                if block.segment.page is not None:
                    expandable.append(block)
                elif not block.is_split:
                    self.release(block)
            for block in expandable:
                unmap_block(self, block)

    def change(self, settings: AllocatorSettings) -> None:
        """Go on with other settings (``torch.cuda.memory._set_allocator_settings``)."""
        self.settings = settings
        self.allowed = self._allowed()

    def snapshot(self) -> tuple[SegmentView, ...]:
        """The segments by address, each with its blocks; expandable ones by stretch of mapped memory."""
        return view(self.segments.values())

    def fits(self, nbytes: int) -> bool:
        """Whether a request would be met from the cache, without asking the driver."""
        size = self.settings.block_bytes(nbytes)
        return self._best(self.small if size <= SMALL_BYTES else self.large, size) is not None

    def release(self, block: Block) -> None:
        """Give back the segment of a free block that fills it (``release_block``)."""
        self.driver.free(block.address, block.nbytes)
        self.stats.reserve(-block.nbytes)
        self.stats.segments -= 1
        block.pool.remove(block)
        del self.segments[block.address]

    def _allowed(self) -> int | None:
        """How much the memory fraction allows (``setMemoryFraction``); 1 is no limit."""
        if self.settings.memory_fraction >= 1:
            return None
        if self.device_bytes is None:
            raise UsageError("per_process_memory_fraction is a fraction of a GPU's memory: name the GPU")
        return int(self.settings.memory_fraction * self.device_bytes)

    def _best(self, pool: Pool, size: int) -> int | None:
        """The index of the free block that torch would take (``get_free_block``)."""
        free = pool.free
        index = pool.smallest(size)
        if index < len(free) and free[index].segment.page is not None:
            index = (_least_extensible if self.settings.expandable_segments else _first_fixed)(free, index)
        if index == len(free):
            return None
        limit = self.settings.max_split_bytes
        if limit is not None:
            nbytes = free[index].nbytes
            if size < limit <= nbytes:
                return None
            if size >= limit and nbytes >= size + self.settings.max_non_split_rounding_bytes:
                return None
        return index

    def _cached(self, pool: Pool, size: int) -> Block | None:
        """The best free block, taken out of its pool."""
        if self.settings.collects_garbage:
            pool.searches += 1
        index = self._best(pool, size)
        if index is None:
            return None
        block = pool.take(index)
        if block.is_split and block.segment.page is None:
            self.stats.split(-block.nbytes, -1)
        return block

    def _fresh(self, pool: Pool, size: int) -> Block | None:
        """A block from the driver, for which cached segments may go back to it (``malloc``'s second half)."""
        if self.settings.collects_garbage:
            collect_garbage(self)
        block = self._grow(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._grow(pool, size)
        if block is None:
            self.empty_cache()
            self.stats.retries += 1
            block = self._grow(pool, size)
        return block

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """A new block from the driver, ``None`` when it has no more (``alloc_block``)."""
        nbytes = self.settings.segment_bytes(size)
        if self.allowed is not None and self.stats.reserved + nbytes > self.allowed:
            return None
        if self.settings.expandable_segments:
            return self._extend(pool, size)
        address = self.driver.malloc(nbytes)
        if address is None:
            return None
        self.stats.reserve(nbytes)
        self.stats.segments += 1
        segment = self.segments[address] = Segment(address, nbytes, page=None)
        segment.first = Block(segment, pool, address, nbytes)
        return segment.first

    def _extend(self, pool: Pool, size: int) -> Block | None:
        """Map memory until a free block holds ``size`` bytes (``try_allocate_expandable_block``)."""
        block = room_for(self, pool, size)
        if not block.mapped and not map_block(self, block, min(block.nbytes, size)):
            return None
        while block.nbytes < size:
            following = block.next
            assert following is not None
            if not map_block(self, following, min(size - block.nbytes, following.nbytes)):
                return None
            block = following
        pool.remove(block)
        return block

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Give back enough blocks above the splitting limit (``release_available_cached_blocks``)."""
        limit = self.settings.max_split_bytes
        if limit is None:
            return False
        wanted = max(size, limit)
        index = pool.smallest(wanted)
        if index < len(pool.free) and pool.free[index].segment.page is None:
            self.release(pool.free[index])
            return True
        released = 0
        for block in reversed(pool.free[:index]):
            if released >= wanted or block.nbytes < limit:
                break
            if block.segment.page is None:
                released += block.nbytes
                self.release(block)
        return released >= wanted

    def _hand_out(self, block: Block, size: int, requested: int) -> Block:
        """Mark the block as live, less what is split off it (``should_split``, ``alloc_found_block``)."""
        remaining = block.nbytes - size
        if remaining >= MIN_BLOCK_BYTES and self._splits(block.pool, size, remaining):
            rest = Block(block.segment, block.pool, block.address + size, remaining)
            rest.insert_after(block, block.next)
            block.nbytes = size
            block.pool.add(rest)
            if block.segment.page is None:
                self.stats.split(remaining, 1)
        block.allocated = True
        block.requested = requested
        self.stats.allocate(block.nbytes, requested)
        return block

    def _splits(self, pool: Pool, size: int, remaining: int) -> bool:
        if pool.small or self.settings.expandable_segments:
            return True
        limit = self.settings.max_split_bytes
        return remaining > SMALL_BYTES and (limit is None or size < limit)

    def _out_of_memory(self, nbytes: int, size: int) -> OutOfMemory:
        return OutOfMemory(
            requested=nbytes,
            attempted=self.settings.segment_bytes(size),
            allocated=self.stats.allocated,
            reserved=self.stats.reserved,
            capacity=self.capacity if self.allowed is None else self.allowed,
            retries=self.stats.retries,
        )


def _least_extensible(free: list[Block], index: int) -> int:
    """The index, from one on, of the block after which none can be extended less (``get_free_block``)."""
    while (
        index + 1 < len(free)
        and free[index].segment.page is not None
        and _extent(free[index + 1]) < _extent(free[index])
    ):
        index += 1
    return index


def _first_fixed(free: list[Block], index: int) -> int:
    """The index, from one on, of the first block outside of expandable segments; the length if none is."""
    while index < len(free) and free[index].segment.page is not None:
        index += 1
    return index


def _extent(block: Block) -> int:
    """The bytes that a free block has or can be extended to."""
    following = block.next
    return block.nbytes + (following.nbytes if following is not None and not following.mapped else 0)
