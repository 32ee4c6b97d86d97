"""How much memory a cell may take: the recipe's budget, and what the machine has left."""

from __future__ import annotations

from mem_gpt_cli.devices.host import host_bytes_left
from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import MemoryReport
from mem_gpt_cli.report.sizes import render_bytes


def too_large(recipe: Recipe, predicted: MemoryReport | None) -> str | None:
    """Why a cell of that prediction must not be run; ``None`` where it may.

    On a GPU the budget has to hold everything that the process takes, its context included, as far as that
    is known. What the GPU has left is compared with the allocator's part alone: asking for it makes the
    context, so that this is subtracted already.
    """
    if predicted is None:
        return None
    limits = (
        ("the budget", recipe.budget.memory, need_bytes(predicted)),
        ("what this machine has left", available_bytes(recipe), allocator_bytes(predicted)),
    )
    for name, limit, need in limits:
        if limit is not None and need > limit:
            over = render_bytes(need - limit)
            return f"needs {render_bytes(need)}, {over} more than {name} ({render_bytes(limit)})"
    return None


def need_bytes(predicted: MemoryReport) -> int:
    """What a run needs by a prediction: of the ladder allocated, reserved, process the highest known rung.

    On the CPU that is the peak of tensors: the process's own memory is no part of a prediction.
    """
    if predicted.device.type == "cuda" and predicted.process_bytes is not None:
        return predicted.process_bytes
    return allocator_bytes(predicted)


def allocator_bytes(predicted: MemoryReport) -> int:
    """What the device's allocator needs: reserved, where that is not known the peak of tensors."""
    return predicted.allocated_bytes if predicted.reserved_bytes is None else predicted.reserved_bytes


def available_bytes(recipe: Recipe) -> int | None:
    """Bytes that can still be allocated on the recipe's device; ``None`` where nothing tells."""
    if recipe.device.type == "cuda":
        return _left_of_the_gpu(recipe.device.name)
    return host_bytes_left()


def _left_of_the_gpu(name: str) -> int | None:
    import torch

    from mem_gpt_cli.profile.device import cuda_index

    try:
        return int(torch.cuda.mem_get_info(cuda_index(name))[0])
    except MemgptError:  # it is not there: the profile says so itself
        return None
