"""A sweep as a table of 80 columns: a title a group, a line a cell, a sentence for each failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mem_gpt_cli.bench.claims_table import claims_table
from mem_gpt_cli.bench.columns import Row
from mem_gpt_cli.bench.labels import groups
from mem_gpt_cli.recipe import Cell
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.table import plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 80
_COLORS = {"ok": "green", "oom": "red", "pruned": "yellow", "unsupported": "dim", "error": "red"}


@dataclass(frozen=True)
class _Column:
    """Its width is fixed, so that the columns of all groups' tables stand below each other."""

    heading: str
    width: int
    text: Callable[[Row], str]


def _measured(row: Row) -> str:
    """The status stands where the measurement would."""
    known = row["measured_peak_bytes"] is not None or row["status"] == "ok"
    return render_bytes(row["measured_peak_bytes"]) if known else str(row["status"])


def _speed(row: Row) -> str:
    speed = row["tokens_per_s"]
    if speed is None:
        return ""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


_COLUMNS = (
    _Column("formula", 8, lambda row: render_bytes(row["formula_peak_bytes"])),
    _Column("trace", 8, lambda row: render_bytes(row["trace_peak_bytes"])),
    _Column("measured", 8, _measured),
    _Column("trace -\nmeasured", 9, lambda row: render_bytes(row["trace_residual_bytes"], signed=True)),
    _Column("tokens/s", 8, _speed),
    _Column("perplex-\nity", 8, lambda row: "" if row["perplexity"] is None else f"{row['perplexity']:,.5g}"),
    _Column("memory\nvs base", 7, lambda row: _ratio(row["memory_ratio"])),
    _Column("speed\nvs base", 7, lambda row: _ratio(row["speed_ratio"])),
)


def sweep_table(cells: Sequence[Cell], rows: Sequence[Row]) -> RenderableType:
    """What is known of a sweep; cells without a row, which it did not come to, are left out."""
    by_index = {row["cell"]: row for row in rows}
    columns = [column for column in _COLUMNS if any(column.text(row) for row in rows)]
    parts: list[RenderableType] = [_table(columns, headings=True)]
    for group in groups(cells):
        body = _table(columns, headings=False)
        for index, label in group.labels.items():
            if index in by_index:
                row = by_index[index]
                style = "" if row["status"] == "ok" else _COLORS[row["status"]]
                body.add_row(label, *(Text(column.text(row), style=style) for column in columns))
        if body.row_count:
            blank = [Text("")] if len(parts) > 1 else []
            parts += [*blank, Text(group.title, style="bold"), body]
    return Group(*parts, *_sentences(rows), *claims_table(rows))


def _table(columns: Sequence[_Column], *, headings: bool) -> Table:
    table = plain_table()
    table.show_header, table.padding = headings, (0, 0, 0, 0)  # the box has a blank between columns
    label_width = WIDTH - sum(column.width + 1 for column in columns)
    table.add_column("", width=label_width, overflow="fold")
    for column in columns:
        table.add_column(column.heading, width=column.width, justify="right", no_wrap=True)
    return table


def _sentences(rows: Sequence[Row]) -> Iterator[Text]:
    """Why a cell has no figures, or not all of them."""
    told = [row for row in rows if row["error"]]
    if told:
        yield Text("")
    for row in told:
        line = Text(row["status"], style=_COLORS[row["status"]])
        yield line.append(f"  {row['key']}: {row['error']}", style="default")
