"""The measurement of what a GPU takes beside torch's allocator; each step has a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from mem_gpt_cli.devices.calibration import Calibration
from mem_gpt_cli.devices.catalogue import gpu_of_product
from mem_gpt_cli.doctor.attempt import Attempt, attempt
from mem_gpt_cli.doctor.measuring import LIBRARIES
from mem_gpt_cli.errors import EnvironmentUnavailableError

_MEASURING = "mem_gpt_cli.doctor.measuring"
STEPS = ("idle", "context", "training", *LIBRARIES, "workspaces")
"""The processes that are started, one after the other."""


def calibrate(
    index: int,
    timeout_s: float,
    *,
    ask: Callable[..., Attempt] = attempt,
    on_step: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measure the GPU that CUDA numbers ``index``; nothing else should run on it meanwhile.

    Args:
        index: CUDA's number of the GPU.
        timeout_s: seconds that each step may take.
        ask: runs a function in a process of its own.
        on_step: called with a step's name before it.

    Raises:
        EnvironmentUnavailableError: there is no such GPU, or a step that is needed did not work.
    """

    def step(name: str, function: str, **arguments: Any) -> Attempt:
        on_step(name)
        return ask(f"{_MEASURING}:{function}", timeout_s, index=index, **arguments)

    idle = _needed("a look at it", step("idle", "idle"))
    context = _needed("a CUDA context", step("context", "outside", what="context"))
    training = _needed("a training step", step("training", "outside", what="training"))
    used = {name: step(name, "outside", what=name) for name in LIBRARIES}
    workspaces = _needed("a matrix product", step("workspaces", "workspaces"))
    known = gpu_of_product(idle["product"], idle["total_bytes"])
    context_bytes = context["outside_bytes"]
    return Calibration(
        gpu=known.name if known else idle["product"],
        product=idle["product"],
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        torch=context["torch"],
        cuda=context["cuda"],
        driver=idle["driver"],
        context_bytes=context_bytes,
        library_bytes=_beyond(context_bytes, training),
        forward_workspace_bytes=workspaces["forward_bytes"],
        backward_workspace_bytes=workspaces["backward_bytes"],
        device_baseline_bytes=idle["used_bytes"],
        libraries={
            name: _beyond(context_bytes, found.answer) for name, found in used.items() if found.ending == "ok"
        },
        process_how=context["how"],
    )


def _needed(what: str, found: Attempt) -> dict[str, Any]:
    if found.ending == "ok":
        return dict(found.answer)
    raise EnvironmentUnavailableError(f"the GPU cannot be calibrated, {what} failed: {found.sentence}")


def _beyond(context_bytes: int, step: Any) -> int:
    """What a step takes more than the context alone; processes differ by some pages, so it may be none."""
    return max(0, int(step["outside_bytes"]) - context_bytes)
