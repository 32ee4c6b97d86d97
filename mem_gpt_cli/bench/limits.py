"""How much memory a cell may take: the recipe's budget, and what the machine has left."""

from __future__ import annotations

from pathlib import Path

from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.sizes import render_bytes

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def too_large(recipe: Recipe, predicted: int | None) -> str | None:
    """Why a cell of that predicted peak must not be run; ``None`` where it may."""
    limits = {"the budget": recipe.budget.memory, "what this machine has left": available_bytes(recipe)}
    for name, limit in limits.items():
        if predicted is not None and limit is not None and predicted > limit:
            over = render_bytes(predicted - limit)
            return f"needs {render_bytes(predicted)}, {over} more than {name} ({render_bytes(limit)})"
    return None


def available_bytes(recipe: Recipe) -> int | None:
    """Bytes that can still be allocated on the recipe's device; ``None`` where nothing tells."""
    if recipe.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None
    known = [count for count in (_left_of_the_system(), _left_of_the_container()) if count is not None]
    return min(known, default=None)


def _left_of_the_system() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_of_the_container() -> int | None:
    """The kernel's cgroup v2 account: ``MemAvailable`` knows nothing of a container's limit."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        return max(0, limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no such cgroup, or no limit: "max"
        return None
