"""How a command answers: a table or one JSON object on stdout, a row in the CSV, warnings on stderr."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mem_gpt_cli.cli import console
from mem_gpt_cli.errors import GateError
from mem_gpt_cli.report.sizes import render_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mem_gpt_cli.cli.options import Request
    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.report.model import MemoryReport


def give(request: Request, report: MemoryReport, tables: Callable[[], list[RenderableType]]) -> None:
    """Print ``report`` as ``request`` wants it; ``tables`` makes what a person sees in place of JSON."""
    if request.csv:
        from mem_gpt_cli.report.csv import REPORT_COLUMNS, append_row, report_row

        append_row(request.csv, REPORT_COLUMNS, report_row(report))
    if request.json:
        from mem_gpt_cli.report.json import to_json

        print(to_json(report))
    else:
        out = console.data()
        for table in tables():
            out.print(table)
            out.print()
    for warning in report.warnings:
        console.warn(warning)


def hold_to_budget(recipe: Recipe, report: MemoryReport) -> None:
    """Check the peak against ``budget.memory``.

    Raises:
        GateError: if the peak is above it.
    """
    budget = recipe.budget.memory
    if budget is not None and report.allocated_bytes > budget:
        over = report.allocated_bytes - budget
        raise GateError(
            f"it does not fit: {report.peak.name} needs {render_bytes(report.allocated_bytes)}, "
            f"{render_bytes(over)} more than the budget of {render_bytes(budget)}"
        )
