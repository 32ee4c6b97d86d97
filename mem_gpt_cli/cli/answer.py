"""How a command answers: a table or one JSON object on stdout, a row in the CSV, warnings on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from mem_gpt_cli.cli import console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mem_gpt_cli.cli.options import Request
    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.report.model import MemoryReport


def give(request: Request, report: MemoryReport, tables: Callable[[], Iterable[RenderableType]]) -> None:
    """Answer with one report; ``tables`` makes what a person sees in place of JSON."""
    _append(request, [report])
    if request.json:
        from mem_gpt_cli.report.json import to_json

        print(to_json(report))
    else:
        _print(tables())
    for warning in report.warnings:
        console.warn(warning)


def give_curve(
    request: Request, axis: str, points: Mapping[int, MemoryReport], table: Callable[[], RenderableType]
) -> None:
    """Answer with one report for each value of ``axis``; the warnings are those of the last, the largest."""
    _append(request, points.values())
    if request.json:
        import json

        from mem_gpt_cli.report.json import to_dict

        found = [{"value": value, "report": to_dict(report)} for value, report in points.items()]
        print(json.dumps({"axis": axis, "points": found}, indent=2, ensure_ascii=False))
    else:
        _print([table()])
    for warning in list(points.values())[-1].warnings:
        console.warn(warning)


def advised(
    request: Request, recipe: Recipe, report: MemoryReport, formula: MemoryReport | None
) -> MemoryReport:
    """The report with what would lower its peak: for a person the cheapest, as JSON whatever does."""
    if formula is None:
        return report
    from mem_gpt_cli.estimate.advice import advised as with_advice

    return with_advice(recipe, report, formula, every=request.json)


def hold_to_budget(recipe: Recipe, report: MemoryReport) -> None:
    """Check the peak against ``budget.memory``, where there is one.

    Raises:
        GateError: if the run does not fit.
    """
    if recipe.budget.memory is not None:
        from mem_gpt_cli.report.limits import refuse_too_large

        refuse_too_large(report, {"the budget of {}": recipe.budget.memory})


def _append(request: Request, reports: Iterable[MemoryReport]) -> None:
    if request.csv:
        from mem_gpt_cli.report.csv import REPORT_COLUMNS, append_row, report_row

        for report in reports:
            append_row(request.csv, REPORT_COLUMNS, report_row(report))


def _print(tables: Iterable[RenderableType]) -> None:
    out = console.data()
    for number, table in enumerate(tables):
        if number:
            out.print()
        out.print(table)
