"""How the peak grows along one axis: stacked bars for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from mem_gpt_cli.report.growth import in_words
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
                table.add_row(f"  {part}", first, last, in_words(values, counts))
    return table
