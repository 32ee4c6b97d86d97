"""Memory over time, stacked by component: one type for what was measured and for what was traced.

A ``Timeline`` is drawn by ``write``: as a page to hover and zoom in, as a picture, or as a table of all
its events.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mem_gpt_cli.errors import MissingExtraError, UsageError
from mem_gpt_cli.report.model import COMPONENTS
from mem_gpt_cli.report.palette import STACK
from mem_gpt_cli.report.sizes import render_bytes

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Axis = Literal["seconds", "events"]

HEADROOM = {1: 1.25, 2: 1.5}
"""Of an axis above its highest value: room for the peak's label, by the number of panels."""
RESTLESS = 18
"""Climbs of the full height from which on a line around the areas would hide them."""
DWARFING = 0.7
"""Share of the peak from which on weights get a panel without them."""
KINDS = (".html", ".png", ".svg", ".csv")
CSV_COLUMNS = ("position", "phase", "allocated_bytes", *(f"{name}_bytes" for name in COMPONENTS))
NAMELESS = 0.02
"""Share of the axis below which the slanted names of neighbours would run into each other."""
LETTER = 0.0065
"""Share of the axis that a letter of a phase's name takes."""


class Stretch(NamedTuple):
    """Where a phase lies on the axis; ``steps`` of it in a row are one stretch."""

    phase: str
    begin: float
    end: float
    steps: int = 1


class Peak(NamedTuple):
    """The highest moment: where on the axis, how many bytes, and what ran there."""

    position: float
    allocated_bytes: int
    phase: str
    operation: str
    module: str


@dataclass(frozen=True)
class Timeline:
    """Live bytes after each event.

    ``position[e]`` is where event ``e`` lies on the axis, ascending: seconds since the beginning, or numbers
    of events. ``by_component[e, c]`` are bytes in component ``c`` of ``COMPONENTS``; between two events
    nothing changes. ``stretches`` cover the axis in its order.
    """

    title: str
    axis: Axis
    position: Float64
    by_component: Int64
    stretches: tuple[Stretch, ...]
    peak: Peak

    @property
    def allocated(self) -> Int64:
        """The sum of all components after each event."""
        total: Int64 = self.by_component.sum(axis=1)
        return total

    @property
    def axis_title(self) -> str:
        """What the axis counts."""
        return "seconds (recorded run)" if self.axis == "seconds" else "allocations and releases"

    def without(self, component: str) -> Timeline:
        """The same, that component left out of the stack; the peak stays that of all of them."""
        held = self.by_component.copy()
        held[:, COMPONENTS.index(component)] = 0
        return replace(self, by_component=held)

    @property
    def restless(self) -> bool:
        """Whether the upper edge goes up and down so often that a line along it would hide the areas."""
        allocated = self.allocated
        return bool(np.abs(np.diff(allocated)).sum() > 2 * RESTLESS * allocated.max())

    def stacked(self) -> list[tuple[str, Int64]]:
        """The components that ever hold anything, each with its bytes, from the bottom to the top."""
        columns = [(name, self.by_component[:, COMPONENTS.index(name)]) for name in STACK]
        return [(name, column) for name, column in columns if column.any()]


def merged(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """The stretches with equal neighbours made one: 64 decode steps are one decode."""
    found: list[Stretch] = []
    for stretch in stretches:
        if found and found[-1].phase == stretch.phase:
            last = found.pop()
            stretch = Stretch(last.phase, last.begin, stretch.end, last.steps + stretch.steps)
        found.append(stretch)
    return tuple(found)


@dataclass(frozen=True)
class Panel:
    """A part of a drawing: a stack on an axis of bytes in units of ``divisor``, from 0 to ``top``."""

    timeline: Timeline
    title: str
    divisor: int
    top: float
    peak_position: float
    peak_height: float

    @property
    def peak_is_right(self) -> bool:
        """Whether the peak lies in the right half, so that its label belongs to its left."""
        stretches = self.timeline.stretches
        return self.peak_position > (stretches[0].begin + stretches[-1].end) / 2


def panels(timeline: Timeline) -> tuple[Panel, ...]:
    """The whole stack; above it, where weights dwarf the rest, the stack without them."""
    highest = int(timeline.allocated.argmax())
    held = int(timeline.by_component[highest, COMPONENTS.index("weights")])
    whole = _panel(timeline, "allocated memory", highest)
    if held < DWARFING * timeline.peak.allocated_bytes:
        return (whole,)
    return (_panel(timeline.without("weights"), "beside the weights", highest, HEADROOM[2]), whole)


def _panel(timeline: Timeline, title: str, highest: int, headroom: float = HEADROOM[1]) -> Panel:
    allocated = timeline.allocated
    unit, divisor = byte_unit(int(allocated.max()))
    return Panel(
        timeline,
        f"{title}, {unit}",
        divisor,
        top=headroom * int(allocated.max()) / divisor,
        peak_position=timeline.peak.position,
        peak_height=int(allocated[highest]) / divisor,
    )


def byte_unit(largest: int) -> tuple[str, int]:
    """The binary unit of an axis that ends at ``largest`` bytes."""
    for unit, divisor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if largest >= divisor:
            return unit, divisor
    return "B", 1


def phase_label(stretch: Stretch) -> str:
    """The phase's name, and how many steps it has where they are several."""
    name = stretch.phase.replace("_", " ")
    return name if stretch.steps == 1 else f"{name} × {stretch.steps}"


def named(stretches: Sequence[Stretch]) -> tuple[list[Stretch], bool]:
    """The stretches wide enough for a name, and whether the names are to be slanted.

    All of them are where one would not fit level: a slanted name beside a level one runs into it.
    """
    whole = stretches[-1].end - stretches[0].begin
    shares = [(stretch, (stretch.end - stretch.begin) / whole) for stretch in stretches]
    wide = [(stretch, share) for stretch, share in shares if share >= NAMELESS]
    return [stretch for stretch, _ in wide], any(
        share < LETTER * len(phase_label(stretch)) for stretch, share in wide
    )


def peak_label(peak: Peak) -> str:
    """The peak in words, over two or three lines."""
    lines = [
        f"peak {render_bytes(peak.allocated_bytes)}",
        f"{peak.phase.replace('_', ' ')}: {peak.operation}",
    ]
    return "\n".join([*lines, peak.module] if peak.module else lines)


def thinned(timeline: Timeline, buckets: int) -> Timeline:
    """A timeline of at most four events a bucket that looks the same: first, lowest, highest and last.

    So no peak is lost, however narrow, and what is kept is true where it stands: for pages to zoom in.
    """
    if len(timeline.position) <= 4 * buckets:
        return timeline
    allocated = timeline.allocated
    keep: set[int] = set()
    for first, after in _buckets(timeline, buckets):
        inside = allocated[first:after]
        keep |= {first, first + int(inside.argmin()), first + int(inside.argmax()), after - 1}
    chosen = np.asarray(sorted(keep), dtype=np.int64)
    return replace(timeline, position=timeline.position[chosen], by_component=timeline.by_component[chosen])


def envelope(timeline: Timeline, buckets: int) -> Timeline:
    """The upper edge of a timeline: each bucket shows its highest moment, and leaves as it really ends.

    For pictures, whose pixels are the buckets: what is narrower than a pixel would pale to nothing.
    """
    if len(timeline.position) <= 2 * buckets:
        return timeline
    allocated = timeline.allocated
    position: list[int] = []
    shown: list[int] = []
    for first, after in _buckets(timeline, buckets):
        position += [first, after - 1]
        shown += [first + int(allocated[first:after].argmax()), after - 1]
    return replace(timeline, position=timeline.position[position], by_component=timeline.by_component[shown])


def _buckets(timeline: Timeline, buckets: int) -> Iterator[tuple[int, int]]:
    """The events of each of ``buckets`` equal parts of the axis, as (first, one after the last)."""
    count = len(timeline.position)
    edges = np.linspace(timeline.position[0], timeline.position[-1], buckets + 1)[1:-1]
    inner = np.searchsorted(timeline.position, edges)
    bounds = np.unique(np.concatenate([[0], inner, [count]])).tolist()
    return pairwise(bounds)


def check(path: Path) -> None:
    """Pass a path that ``write`` can write to: better said before a long run than after it.

    Raises:
        UsageError: for a suffix that is none of ``KINDS``, or a folder that is not there.
        MissingExtraError: without the package that draws this kind.
    """
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise UsageError(f"--timeline: cannot draw {path}: give a path that ends in {', '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--timeline: cannot write {path}: there is no folder {path.parent}")
    package = {".html": "plotly", ".png": "matplotlib", ".svg": "matplotlib"}.get(suffix)
    if package is not None:
        import_drawing(package)


def import_drawing(package: str) -> None:
    """Import a drawing library.

    Raises:
        MissingExtraError: if it is not installed.
    """
    from importlib import import_module

    try:
        import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, "plot", "drawing a timeline") from error


def write(timeline: Timeline, path: Path) -> None:
    """Draw a timeline into a file; its suffix says how.

    Raises:
        UsageError: for an unknown suffix or a path that cannot be written.
        MissingExtraError: without the package that draws this kind.
    """
    check(path)
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            _write_csv(timeline, path)
        elif suffix == ".html":
            from mem_gpt_cli.report.timeline_page import write_page

            write_page(timeline, path)
        else:
            from mem_gpt_cli.report.timeline_picture import write_picture

            write_picture(timeline, path)
    except OSError as error:
        raise UsageError(f"--timeline: cannot write {path}: {error.strerror}") from error


def _write_csv(timeline: Timeline, path: Path) -> None:
    """Every event, one row each; ``position`` is in seconds or counts events."""
    begins = [stretch.begin for stretch in timeline.stretches]
    stretch_of_event = np.clip(np.searchsorted(begins, timeline.position, side="right") - 1, 0, None)
    rows: Sequence[Sequence[int]] = timeline.by_component.tolist()
    positions = timeline.position.tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for position, stretch, row in zip(positions, stretch_of_event.tolist(), rows, strict=True):
            shown = f"{position:.9f}" if timeline.axis == "seconds" else int(position)
            writer.writerow((shown, timeline.stretches[stretch].phase, sum(row), *row))
