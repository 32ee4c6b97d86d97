"""The claims of a sweep as a table: claimed, measured, whether it holds; then each miss with its cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mem_gpt_cli.bench.claims import ASPECTS, Aspect
from mem_gpt_cli.bench.columns import Row
from mem_gpt_cli.report.table import plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {"beaten": "green", "missed": "red", "unmeasured": "dim"}
_HEADINGS = {"memory": "memory saved", "speed": "speed", "quality": "quality lost"}


def claims_table(rows: Sequence[Row]) -> Iterator[RenderableType]:
    """A line a claim and a sentence a miss; nothing where a sweep claims nothing."""
    claimed = [row for row in rows if row["claim"]]
    if not claimed:
        return
    table = plain_table()
    table.show_header = True
    table.add_column("claimed, measured", width=23, overflow="fold")
    for aspect in ASPECTS:
        table.add_column(_HEADINGS[aspect.name], width=17, overflow="fold")
    for row in claimed:
        table.add_row(f"{row['claim']}, {row['model']}", *(_cell(aspect, row) for aspect in ASPECTS))
    yield Text("")
    yield table
    for row in claimed:
        if row["miss_cause"]:
            line = Text("missed", style=_STYLES["missed"])
            told = f"  {row['claim']}, {row['model']}: {row['miss_cause']}"
            yield line.append(told, style="default")


def _cell(aspect: Aspect, row: Row) -> Text:
    """``50%, 61% beaten``: claimed, measured, verdict."""
    verdict = row[f"{aspect.name}_verdict"]
    if verdict is None:
        return Text("")
    claimed, measured = (_figure(aspect, row[column]) for column in (aspect.claimed, aspect.measured))
    text = Text(f"{claimed}, {measured} " if measured else f"{claimed}, ")
    return text.append(verdict, style=_STYLES[verdict])


def _figure(aspect: Aspect, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}x" if aspect.name == "speed" else f"{value:.3g}%"
