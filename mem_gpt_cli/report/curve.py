"""How the peak grows along one axis: stacked bars for a terminal, a picture for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from mem_gpt_cli.errors import MissingExtraError, UsageError
from mem_gpt_cli.report.model import MemoryReport
from mem_gpt_cli.report.palette import COLORS, STACK
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.table import label, plain_table, title, words

if TYPE_CHECKING:
    from rich.console import RenderableType

GLYPHS: Mapping[str, str] = dict(zip(STACK, "█▓▒░▚▞▪·", strict=True))
"""One for each component, so that the bars can be read without color."""

Heights = Mapping[tuple[str, str], Sequence[int]]
BAR_WIDTH = 46
LEAST_SHARE = 0.0005
"""Parts that hold less of their phase at the curve's end are left out of its table."""
PICTURES = (".png", ".svg", ".pdf")


def growth(axis: str, points: Mapping[int, MemoryReport], heights: Heights) -> RenderableType:
    """Bars of the peak at each value of ``axis``, and how fast each part of each phase grows.

    ``heights`` holds, by phase and part, the most bytes that the part held at each of the values.
    """
    reports = list(points.values())
    names = [name for name in STACK if any(report.peak.components.get(name, 0) for report in reports)]
    highest = max(report.allocated_bytes for report in reports)
    table = plain_table()
    table.add_column(axis, justify="right", no_wrap=True)
    table.add_column("peak", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=BAR_WIDTH)
    table.add_column("in phase", no_wrap=True)
    for value, report in points.items():
        table.add_row(
            f"{value:,}",
            render_bytes(report.allocated_bytes),
            _stack(report, names, highest),
            words(report.peak.name),
        )
    legend = _legend(names)
    return Group(
        title(reports[-1], sizes=False), table, legend, Text(""), _growth_table(axis, points, heights)
    )


def _legend(names: Sequence[str]) -> Text:
    parts = [Text(f"{GLYPHS[name]} ", style=COLORS[name]).append(label(name)) for name in names]
    return Text("  ").join(parts)


def _stack(report: MemoryReport, names: Sequence[str], highest: int) -> Text:
    """One bar; each component ends where the running sum does, so that rounding never adds up."""
    bar, below, drawn = Text(), 0, 0
    for name in names:
        below += report.peak.components.get(name, 0)
        end = round(BAR_WIDTH * below / highest) if highest else 0
        bar.append(GLYPHS[name] * (end - drawn), style=COLORS[name])
        drawn = end
    return bar


def _growth_table(axis: str, points: Mapping[int, MemoryReport], heights: Heights) -> RenderableType:
    values = list(points)
    table = plain_table()
    table.add_column("highest in each phase", no_wrap=True)
    for value in (values[0], values[-1]):
        table.add_column(f"at {axis} {value:,}", justify="right", no_wrap=True)
    table.add_column("grows", no_wrap=True)
    for phase in dict.fromkeys(phase for phase, _ in heights):
        parts = {part: counts for (name, part), counts in heights.items() if name == phase}
        least = LEAST_SHARE * sum(counts[-1] for counts in parts.values())
        table.add_row(Text(words(phase), style="bold"))
        for part, counts in sorted(parts.items(), key=lambda item: -item[1][-1]):
            if counts[-1] > least:
                first, last = render_bytes(counts[0]), render_bytes(counts[-1])
                table.add_row(f"  {part}", first, last, growth_of(values, counts))
    return table


def growth_of(values: Sequence[int], heights: Sequence[int]) -> str:
    """The power of the axis that the last step follows, with its name where it has one.

    The exponent is that of a straight line through the last two points of a plot with two logarithmic axes.
    """
    if len(values) < 2 or not heights[-2] or not heights[-1]:
        return ""
    exponent = log(heights[-1] / heights[-2]) / log(values[-1] / values[-2])
    if abs(exponent) < 0.02:
        return "not at all"
    names = {1: "linearly", 2: "quadratically"}
    name = names.get(round(exponent), "") if abs(exponent - round(exponent)) <= 0.1 else ""
    return f"{name} (n^{exponent:.2f})" if name else f"as n^{exponent:.2f}"


def draw(axis: str, points: Mapping[int, MemoryReport], path: Path) -> None:
    """Write the curve as a picture of stacked areas; the suffix of ``path`` says which kind.

    Raises:
        UsageError: for a suffix that is no picture's, or a path that cannot be written.
        MissingExtraError: without matplotlib.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"cannot draw {path}: give a path that ends in {', '.join(PICTURES)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing a curve") from error
    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    _stacked_areas(figure.add_subplot(), axis, points)
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _stacked_areas(axes: Any, axis: str, points: Mapping[int, MemoryReport]) -> None:
    values, reports = list(points), list(points.values())
    unit, divisor = ("GiB", 2**30) if max(r.allocated_bytes for r in reports) >= 2**30 else ("MiB", 2**20)
    names = [name for name in STACK if any(report.peak.components.get(name, 0) for report in reports)]
    areas = [[report.peak.components.get(name, 0) / divisor for report in reports] for name in names]
    labels = [words(name) for name in names]
    axes.stackplot(values, areas, labels=labels, colors=[COLORS[name] for name in names], linewidth=0)
    axes.plot(values, [report.allocated_bytes / divisor for report in reports], color="#222222", marker=".")
    axes.set_xlim(values[0], values[-1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel({"seq": "tokens", "batch": "sequences at once"}.get(axis, axis))
    axes.set_ylabel(f"peak of allocated memory, {unit}")
    report = reports[-1]
    axes.set_title(f"{report.model.name}, {report.task}, predicted by formula", loc="left")
    handles, texts = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], texts[::-1], loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
