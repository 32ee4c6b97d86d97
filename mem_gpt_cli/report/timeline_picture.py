"""A timeline as a PNG or SVG picture, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mem_gpt_cli.report.palette import COLORS
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.timeline import Peak, Stretch, Timeline, thinned

BUCKETS = 1600
INK = "#1F2933"
FAINT = "#7B8794"
OUTLINED = 2500
"""Most events with a line around them."""
NARROW = 0.055
"""Share of the axis below which a phase's name does not fit into its stretch."""
NAMELESS = 0.012
"""Share of the axis below which the names of neighbours would run into each other."""


def write_picture(timeline: Timeline, path: Path) -> None:
    """Draw stacked areas with the phases marked and the peak named.

    Raises:
        OSError: where the path cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    unit, divisor = byte_unit(timeline.peak.allocated_bytes)
    _areas(axes, thinned(timeline, BUCKETS), divisor)
    _phases(axes, timeline)
    _peak(axes, timeline, divisor)
    _frame(axes, timeline, unit)
    figure.savefig(path)


def byte_unit(largest: int) -> tuple[str, int]:
    """The binary unit of an axis that ends at ``largest`` bytes."""
    for unit, divisor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if largest >= divisor:
            return unit, divisor
    return "B", 1


def _areas(axes: Any, timeline: Timeline, divisor: int) -> None:
    below = 0.0 * timeline.position
    for name, held in timeline.stacked():
        above = below + held / divisor
        axes.fill_between(
            timeline.position,
            below,
            above,
            step="post",
            color=COLORS[name],
            linewidth=0,
            label=name.replace("_", " "),
        )
        below = above
    axes.step(timeline.position, below, where="post", color=INK, linewidth=outline(timeline, 0.6))


def outline(timeline: Timeline, width: float) -> float:
    """The width of the line around the areas: none where it would go up and down so often as to hide them."""
    return width if len(timeline.position) <= OUTLINED else 0.0


def _phases(axes: Any, timeline: Timeline) -> None:
    whole = timeline.stretches[-1].end - timeline.stretches[0].begin
    for number, stretch in enumerate(timeline.stretches):
        if number % 2:
            axes.axvspan(stretch.begin, stretch.end, color=INK, alpha=0.05, linewidth=0, zorder=0)
        if number:
            axes.axvline(stretch.begin, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), alpha=0.6)
        share = (stretch.end - stretch.begin) / whole
        if share < NAMELESS:
            continue
        narrow = share < NARROW
        axes.text(
            (stretch.begin + stretch.end) / 2,
            1.015,
            phase_label(stretch),
            transform=axes.get_xaxis_transform(),
            rotation=35 if narrow else 0,
            rotation_mode="anchor",
            ha="left" if narrow else "center",
            va="bottom",
            fontsize=9,
            color=INK,
        )


def phase_label(stretch: Stretch) -> str:
    """The phase's name, and how many steps it has where they are several."""
    name = stretch.phase.replace("_", " ")
    return name if stretch.steps == 1 else f"{name} × {stretch.steps}"


def peak_label(peak: Peak) -> str:
    """The peak in words, over two or three lines."""
    lines = [
        f"peak {render_bytes(peak.allocated_bytes)}",
        f"{peak.phase.replace('_', ' ')}: {peak.operation}",
    ]
    return "\n".join([*lines, peak.module] if peak.module else lines)


def _peak(axes: Any, timeline: Timeline, divisor: int) -> None:
    peak = timeline.peak
    begin, end = timeline.stretches[0].begin, timeline.stretches[-1].end
    right_half = peak.position > (begin + end) / 2
    height = peak.allocated_bytes / divisor
    axes.plot([peak.position], [height], marker="o", color=INK, markersize=5, zorder=5)
    axes.annotate(
        peak_label(peak),
        (peak.position, height),
        xytext=(-14 if right_half else 14, 16),
        textcoords="offset points",
        ha="right" if right_half else "left",
        va="bottom",
        fontsize=9.5,
        color=INK,
        bbox={"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": FAINT, "alpha": 0.92},
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8},
        zorder=6,
    )
    axes.set_ylim(0, 1.22 * height)


def _frame(axes: Any, timeline: Timeline, unit: str) -> None:
    axes.set_xlim(timeline.stretches[0].begin, timeline.stretches[-1].end)
    axes.set_xlabel("seconds (recorded run)" if timeline.axis == "seconds" else "allocations and releases")
    axes.set_ylabel(f"allocated memory, {unit}")
    axes.set_title(timeline.title, loc="left", pad=30, fontsize=12, color=INK)
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        labels[::-1],
        loc="center left",
        bbox_to_anchor=(1.005, 0.5),
        frameon=False,
        fontsize=9.5,
    )
