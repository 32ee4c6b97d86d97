"""Every action of CUDA's caching allocator during a run, written to a file.

The allocator keeps the record itself (``torch.cuda.memory._record_memory_history``): which block it gave out
and took back, and which memory it asked the driver for. Without stack traces it costs hardly any time.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mem_gpt_cli.allocator.history import write_history
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.recipe.schema import Recipe


def check_history(path: Path, recipe: Recipe) -> None:
    """Pass where a history of the recipe's run can be written to ``path``.

    Raises:
        UsageError: on CPU, or for a folder that is not there.
    """
    if recipe.device.type == "cpu":
        raise UsageError("--history records CUDA's allocator, which the CPU does not have: use device=cuda")
    if not path.parent.is_dir():
        raise UsageError(f"--history: there is no folder {path.parent}")


@contextmanager
def recorded_history(path: Path | None) -> Iterator[None]:
    """Record what CUDA's allocator does, also where it ends out of memory; ``None`` records nothing."""
    if path is None:
        yield
        return
    torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python", clear_history=True)
    try:
        yield
    finally:
        snapshot = torch.cuda.memory._snapshot()
        torch.cuda.memory._record_memory_history(enabled=None)
        write_history(snapshot, path, about=f"torch {torch.__version__}, Python {platform.python_version()}")
