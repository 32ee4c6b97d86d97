"""Memory that ran out during a run: how torch says so, and what of it a user can act on.

torch raises a class of its own for a GPU's memory and a plain ``RuntimeError`` for the CPU's, and the figures
stand in the words alone: ``CUDACachingAllocator.cpp`` and ``alloc_cpu.cpp`` of ``c10``. Imports no torch, so
that whoever has no device can ask too.
"""

from __future__ import annotations

import re

from mem_gpt_cli.errors import GateError

_NAMES = {"MemoryError", "OutOfMemoryError"}
_ON_CPU = "can't allocate memory"
_ASKED = re.compile(r"tried to allocate (\S+ (?:[KMG]iB|bytes))", re.IGNORECASE)
_HELD = re.compile(
    r"(?P<allocated>\S+ \w+) is allocated by PyTorch.*?"
    r"(?P<idle>\S+ \w+) is reserved by PyTorch but unallocated"
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of a run says that the device's memory was too small."""
    return bool(_NAMES & {kind.__name__ for kind in type(error).__mro__}) or _ON_CPU in str(error)


def exhausted(error: BaseException, phase: str) -> GateError:
    """The failure as a user is told it: the phase, what was asked for and held, the way out."""
    words = " ".join(str(error).split())
    if asked := _ASKED.search(words):
        what = f"it asked for {asked[1]}"
        if held := _HELD.search(words):
            what += (
                f" while {held['allocated']} were allocated and {held['idle']} more reserved but unallocated"
            )
    else:
        what = words.partition(". ")[0] or type(error).__name__
    return GateError(
        f"out of memory in {phase}: {what}; `memgpt estimate --trace` says what this recipe needs"
    )
