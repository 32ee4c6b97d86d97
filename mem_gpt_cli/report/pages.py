"""What became of the pages of a paged cache, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.table import plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType


def pages_table(pages: Mapping[str, Any]) -> RenderableType:
    """``details.pages`` of a report: how many pages, what they held, what padding would take."""
    size = pages["page_bytes"]
    table = plain_table()
    table.add_column(f"pages of {pages['page_size']} tokens,\n{render_bytes(size)} each", no_wrap=True)
    table.add_column("pages", justify="right", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for label, count in (
        ("in the pool", pages["pool_pages"]),
        ("in use at once, at most", pages["peak_in_use"]),
        ("handed out in all", pages["allocated"]),
        ("freed", pages["freed"]),
        ("of them used again", pages["reused"]),
        ("shared by common prefixes", pages["shared"]),
    ):
        table.add_row(label, f"{count:,}", render_bytes(count * size))
    waste = f"{pages['waste_percent']:.1f}%"
    table.add_row("unused slots in pages in use", waste, render_bytes(pages["waste_bytes"]))
    table.add_section()
    table.add_row("a padded cache of the same requests", "", render_bytes(pages["padded_bytes"]))
    return table
