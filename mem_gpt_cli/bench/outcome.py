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
    """

    status: Status
    reports: Mapping[Lens, MemoryReport] = field(default_factory=dict)
    seconds: Mapping[Lens, float] = field(default_factory=dict)
    cell_s: float | None = None
    failed_phase: str | None = None
    error: str | None = None

    @property
    def predicted_bytes(self) -> int | None:
        """The predicted peak: the trace's, without one the formula's."""
        return predicted_bytes(self.reports)


def predicted_bytes(reports: Mapping[Lens, MemoryReport]) -> int | None:
    """The peak by the best prediction among ``reports``; ``None`` where there is none."""
    best = reports.get("trace") or reports.get("estimate")
    return best.allocated_bytes if best else None
