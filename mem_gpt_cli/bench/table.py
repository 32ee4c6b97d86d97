"""A sweep as a table of 80 columns: a title a group, a line a cell, a sentence for each failure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mem_gpt_cli.bench.columns import Row
from mem_gpt_cli.bench.labels import groups
from mem_gpt_cli.recipe import Cell
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.table import plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 80
_COLUMNS: Mapping[str, int] = {
    "formula": 8,
    "trace": 8,
    "measured": 8,
    "trace -\nmeasured": 9,
    "tokens/s": 8,
    "memory\nvs base": 7,
    "speed\nvs base": 7,
}
"""Headings and widths, the same in each group's table, so that the columns stand below each other."""

_LABEL_WIDTH = WIDTH - sum(_COLUMNS.values()) - len(_COLUMNS)
_COLORS = {"ok": "green", "oom": "red", "pruned": "yellow", "unsupported": "dim", "error": "red"}


def sweep_table(cells: Sequence[Cell], rows: Sequence[Row]) -> RenderableType:
    """What is known of a sweep; cells without a row, which it did not come to, are left out."""
    by_index = {row["cell"]: row for row in rows}
    parts: list[RenderableType] = []
    for number, group in enumerate(groups(cells)):
        labels = {index: label for index, label in group.labels.items() if index in by_index}
        if not labels:
            continue
        heading = _table(headings=not parts)
        if not parts:
            parts.append(heading)
        elif number:
            parts.append(Text(""))
        if group.title:
            parts.append(Text(group.title, style="bold"))
        body = _table(headings=False)
        for index, label in labels.items():
            body.add_row(label, *_figures(by_index[index]))
        parts.append(body)
    parts.extend(_sentences(rows))
    return Group(*parts)


def _table(*, headings: bool) -> Table:
    table = plain_table()
    table.show_header, table.padding = headings, (0, 0, 0, 0)  # the box has a blank between columns
    table.add_column("", width=_LABEL_WIDTH, overflow="fold")
    for heading, width in _COLUMNS.items():
        table.add_column(heading, width=width, justify="right", no_wrap=True)
    return table


def _figures(row: Row) -> Iterator[Text]:
    yield Text(render_bytes(row["formula_peak_bytes"]))
    yield Text(render_bytes(row["trace_peak_bytes"]))
    if row["measured_peak_bytes"] is None and row["status"] != "ok":
        yield Text(row["status"], style=_COLORS[row["status"]])
    else:
        yield Text(render_bytes(row["measured_peak_bytes"]))
    yield Text(render_bytes(row["trace_residual_bytes"], signed=True))
    yield Text(_speed(row["tokens_per_s"]))
    yield Text(_ratio(row["memory_ratio"]))
    yield Text(_ratio(row["speed_ratio"]))


def _sentences(rows: Sequence[Row]) -> Iterator[Text]:
    """Why a cell has no figures, or not all of them."""
    told = [row for row in rows if row["error"]]
    if told:
        yield Text("")
    for row in told:
        line = Text(f"{row['status']}", style=_COLORS[row["status"]])
        yield line.append(f"  {row['key']}: {row['error']}", style="default")


def _speed(tokens_per_s: float | None) -> str:
    if tokens_per_s is None:
        return ""
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"
