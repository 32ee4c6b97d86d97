"""A timeline as a PNG or SVG picture, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mem_gpt_cli.report.palette import COLORS
from mem_gpt_cli.report.timeline import (
    Panel,
    Stretch,
    Timeline,
    envelope,
    named,
    panels,
    peak_label,
    phase_label,
)

BUCKETS = 1650
"""About the pixels of the axis."""
INK = "#1F2933"
FAINT = "#7B8794"
LEVEL, SLANTED = 30, 56
"""Points between the axes and the title, for names of phases that are level or slanted."""


def write_picture(timeline: Timeline, path: Path) -> None:
    """Draw stacked areas with the phases marked and the peak named.

    Raises:
        OSError: where the path cannot be written.
    """
    from matplotlib.figure import Figure

    parts = panels(timeline)
    figure = Figure(figsize=(13, 6.2 if len(parts) == 1 else 8.4), dpi=150, layout="constrained")
    columns = figure.subplots(len(parts), sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(columns, parts, strict=True):
        _draw(axes, panel)
    top, bottom = columns[0], columns[-1]
    _name_phases(top, timeline.stretches)
    _name_peak(top, parts[0])
    top.set_title(
        timeline.title,
        loc="left",
        pad=SLANTED if named(timeline.stretches)[1] else LEVEL,
        fontsize=12,
        color=INK,
    )
    bottom.set_xlabel(timeline.axis_title)
    handles, labels = bottom.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False, fontsize=9.5)
    figure.savefig(path)


def _draw(axes: Any, panel: Panel) -> None:
    timeline = panel.timeline
    _areas(axes, envelope(timeline, BUCKETS), panel.divisor)
    for number, stretch in enumerate(timeline.stretches):
        if number % 2:
            axes.axvspan(stretch.begin, stretch.end, color=INK, alpha=0.05, linewidth=0, zorder=0)
        if number:
            axes.axvline(stretch.begin, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), alpha=0.6)
    axes.plot([panel.peak_position], [panel.peak_height], marker="o", color=INK, markersize=5, zorder=5)
    axes.set_xlim(timeline.stretches[0].begin, timeline.stretches[-1].end)
    axes.set_ylim(0, panel.top)
    axes.set_ylabel(panel.title)
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


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
    if not timeline.restless:
        axes.step(timeline.position, below, where="post", color=INK, linewidth=0.6)


def _name_phases(axes: Any, stretches: tuple[Stretch, ...]) -> None:
    wide, slanted = named(stretches)
    for stretch in wide:
        axes.text(
            (stretch.begin + stretch.end) / 2,
            1.015,
            phase_label(stretch),
            transform=axes.get_xaxis_transform(),
            rotation=35 if slanted else 0,
            rotation_mode="anchor",
            ha="left" if slanted else "center",
            va="bottom",
            fontsize=9,
            color=INK,
        )


def _name_peak(axes: Any, panel: Panel) -> None:
    side = -1 if panel.peak_is_right else 1
    axes.annotate(
        peak_label(panel.timeline.peak),
        (panel.peak_position, panel.peak_height),
        xytext=(14 * side, 16),
        textcoords="offset points",
        ha="right" if panel.peak_is_right else "left",
        va="bottom",
        fontsize=9.5,
        color=INK,
        bbox={"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": FAINT, "alpha": 0.92},
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8},
        zorder=6,
    )
