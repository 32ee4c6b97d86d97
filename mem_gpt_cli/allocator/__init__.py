"""torch's caching allocator on CUDA, modelled: what it reserves for a run, and where the run would die."""

from mem_gpt_cli.allocator.block import Block
from mem_gpt_cli.allocator.caching import CachingAllocator
from mem_gpt_cli.allocator.comparison import Comparison, Difference, compare
from mem_gpt_cli.allocator.driver import AscendingDriver, Driver
from mem_gpt_cli.allocator.history import Entry, History, read_history, write_history
from mem_gpt_cli.allocator.out_of_memory import OutOfMemory
from mem_gpt_cli.allocator.replay import Death, Fragmentation, Replay, replay
from mem_gpt_cli.allocator.restore import restore
from mem_gpt_cli.allocator.settings import AllocatorSettings
from mem_gpt_cli.allocator.snapshot import BlockView, SegmentView
from mem_gpt_cli.allocator.stats import Stats

__all__ = [
    "AllocatorSettings",
    "AscendingDriver",
    "Block",
    "BlockView",
    "CachingAllocator",
    "Comparison",
    "Death",
    "Difference",
    "Driver",
    "Entry",
    "Fragmentation",
    "History",
    "OutOfMemory",
    "Replay",
    "SegmentView",
    "Stats",
    "compare",
    "read_history",
    "replay",
    "restore",
    "write_history",
]
