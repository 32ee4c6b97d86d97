"""Why the driver's tool shows more than torch: the steps from live tensors to the memory of the whole GPU."""

from __future__ import annotations

from dataclasses import dataclass

from mem_gpt_cli.report.model import MemoryReport, Provenance, Source

EXPLANATIONS = {
    "allocated": "live tensors and kernels' buffers, in blocks rounded up to 512 B",
    "reserved": "adds the blocks that torch's allocator keeps for reuse; those that no request fits are "
    "fragmentation, which expandable_segments:True in device.allocator lowers",
    "process": "adds the CUDA context, the code of kernels and libraries, and what libraries take without "
    "asking torch's allocator",
    "device": "adds other processes on this GPU, and what the driver keeps for itself",
}
"""What each step is, or adds to the one before it; what a step that is missing adds is in the next."""

_UNCALIBRATED = "no calibration of this GPU is known: run `memgpt doctor --calibrate` on it"
_TRACED: dict[tuple[str, Provenance], Source] = {
    ("allocated", "traced"): Source("traced: the dry run's tensors and the known buffers of CUDA's kernels"),
    ("reserved", "traced"): Source("traced: the same events, replayed by a model of torch's allocator"),
    ("process", "calibrated"): Source("reserved, and the overhead that was calibrated on such a GPU"),
    ("device", "calibrated"): Source("process, and the driver's own reserve that was calibrated"),
    ("process", "unavailable"): Source("calibration", _UNCALIBRATED),
    ("device", "unavailable"): Source("calibration", _UNCALIBRATED),
}
"""What is said of a step of a dry run where the report itself says no more than its provenance."""
_NO_BASELINE = Source("calibration", "the calibration could not tell what an idle device uses")
"""What is said of the device where only the process is calibrated."""


@dataclass(frozen=True)
class Step:
    """One figure called "the memory".

    ``difference_bytes`` is what it is above ``above``, the nearest lower step that is known; both are
    ``None`` for the lowest step and for one that is missing, of which ``why_not`` says why.
    """

    name: str
    bytes: int | None
    above: str | None
    difference_bytes: int | None
    how: str
    why_not: str | None
    explanation: str


def has_ladder(report: MemoryReport) -> bool:
    """Whether there are steps to explain: runs on a GPU, real or dry."""
    return report.device.type == "cuda" and report.lens != "estimate"


def ladder(report: MemoryReport) -> tuple[Step, ...]:
    """The steps allocated, reserved, process and device of a report, the lowest first."""
    figures = {
        "allocated": report.allocated_bytes,
        "reserved": report.reserved_bytes,
        "process": report.process_bytes,
        "device": report.device_bytes,
    }
    steps: list[Step] = []
    known: tuple[str, int] | None = None
    for name, count in figures.items():
        source = _source(report, name, count)
        above, below = known if known and count is not None else (None, None)
        steps.append(
            Step(
                name=name,
                bytes=count,
                above=above,
                difference_bytes=None if count is None or below is None else count - below,
                how=source.how,
                why_not=source.why_not,
                explanation=EXPLANATIONS[name],
            )
        )
        known = known if count is None else (name, count)
    return tuple(steps)


def _source(report: MemoryReport, name: str, count: int | None) -> Source:
    """What the report says of a figure, else what its provenance says."""
    said = report.sources.get(f"{name}_bytes")
    if said is not None:
        return said
    column = "peak_allocated_bytes" if name == "allocated" else f"{name}_bytes"
    provenance = report.provenance.get(column, "unavailable")
    calibrated = report.provenance.get("process_bytes") == "calibrated"
    if report.lens == "trace" and (name, provenance) == ("device", "unavailable") and calibrated:
        return _NO_BASELINE
    if report.lens == "trace" and (name, provenance) in _TRACED:
        return _TRACED[name, provenance]
    return Source(provenance, "it was not measured" if count is None else None)
