"""The stages of a run, in their order, and the share of the time after which each must be over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu import accuracy, calibration, claims, histories, speed, suite
from benchmarks.gpu.cells import Part
from benchmarks.gpu.kit import Kit


@dataclass(frozen=True)
class Stage:
    """One part of a run.

    ``run`` gets the kit and ``share``, the part of the time limit at which it has to stop, and returns the
    names of what it had no time for. Time that a stage leaves over is the next one's.
    """

    name: str
    share: float
    run: Callable[[Kit, float], list[str]]
    file: str
    part: Part | None = None


STAGES = (
    Stage("calibration", 0.20, calibration.run, calibration.NAME),
    Stage("accuracy", 0.62, accuracy.run, accuracy.NAME, "accuracy"),
    Stage("speed", 0.72, speed.run, speed.NAME, "speed"),
    Stage("claims", 0.84, claims.run, claims.NAME, "claims"),
    Stage("histories", 0.88, histories.run, histories.NAME, "histories"),
    Stage("tests", 0.98, suite.run, suite.NAME),
)
"""Before them comes ``environment.json``, which grows with each, and after them ``summary.json``."""
