"""What became of a cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from mem_gpt_cli.report.model import Lens, MemoryReport

Status = Literal["ok", "oom", "pruned", "unsupported", "error"]
LENSES: tuple[Lens, ...] = get_args(Lens)
"""In the order a cell runs them: what is cheap and predicts comes before what is dear and may fail."""


@dataclass(frozen=True)
class Outcome:
    """Everything known of a cell once it is over.

    ``reports`` and ``seconds`` hold the lenses that answered, whatever the status. ``failed_phase`` is the
    phase of the workload that a cell did not survive; ``error`` says why a lens has no answer.
    ``start_reserved_bytes`` is what the GPU's allocator held before the cell began: 0 if all is well,
    ``None`` in a process that had not used a GPU.
    """

    status: Status
    reports: Mapping[Lens, MemoryReport] = field(default_factory=dict)
    seconds: Mapping[Lens, float] = field(default_factory=dict)
    cell_s: float | None = None
    failed_phase: str | None = None
    error: str | None = None
    start_reserved_bytes: int | None = None


def best_prediction(reports: Mapping[Lens, MemoryReport]) -> MemoryReport | None:
    """The trace's report, without one the formula's; ``None`` where there is neither."""
    return reports.get("trace") or reports.get("estimate")
