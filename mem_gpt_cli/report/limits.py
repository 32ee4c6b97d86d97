"""Whether a run fits what it may take: one rule and one sentence for whoever asks."""

from __future__ import annotations

from collections.abc import Mapping

from mem_gpt_cli.errors import GateError
from mem_gpt_cli.report.model import MemoryReport
from mem_gpt_cli.report.sizes import render_bytes


def refuse_too_large(report: MemoryReport, limits: Mapping[str, int | None]) -> None:
    """Pass a run that fits; what a trace says of a GPU's allocator counts before the peak of tensors.

    Args:
        report: of the run.
        limits: bytes that it may take, ``None`` where nobody knows, by what each is called: ``{}`` stands for
            the bytes.

    Raises:
        GateError: for one that does not.
    """
    allocator = report.details.get("allocator")
    if allocator is not None and allocator["out_of_memory"] is not None:
        death = allocator["out_of_memory"]
        raise GateError(f"it does not fit: {death['phase']} runs out of memory in {death['operation']}")
    for name, limit in limits.items():
        if limit is not None and report.allocated_bytes > limit:
            over = report.allocated_bytes - limit
            raise GateError(
                f"it does not fit: {report.peak.name} needs {render_bytes(report.allocated_bytes)}, "
                f"{render_bytes(over)} more than {name.format(render_bytes(limit))}"
            )
