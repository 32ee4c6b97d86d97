"""``memgpt estimate``: where the memory will go, by formula or by tracing the real code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mem_gpt_cli.cli import answer
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.report.model import MemoryReport


@takes_recipe
def estimate(
    request: Request,
    trace: Annotated[
        bool, typer.Option("--trace", help="Run the real code on fake tensors: exact, in a second.")
    ] = False,
    full_depth: Annotated[
        bool, typer.Option("--full-depth", help="With --trace: trace every layer, extrapolate nothing.")
    ] = False,
    events: Annotated[
        Path | None,
        typer.Option("--events", help="With --trace: write every allocation to this file.", metavar="PATH"),
    ] = None,
) -> None:
    """Predict where the memory will go, without weights and without a device.

    In closed form by default, in milliseconds; with --trace the real transformers code runs on fake tensors.
    """
    recipe = request.recipe()
    reports = {"estimate": _formula(recipe)}
    if trace:
        from mem_gpt_cli.trace import trace as trace_recipe

        reports["trace"] = trace_recipe(recipe, full_depth=full_depth, events=events)
    elif full_depth or events:
        raise UsageError("--full-depth and --events belong to a trace: add --trace")
    report = list(reports.values())[-1]
    answer.give(request, report, lambda: _tables(recipe, reports))
    answer.hold_to_budget(recipe, report)


def _formula(recipe: Recipe) -> MemoryReport:
    from mem_gpt_cli.estimate import estimate as estimate_recipe

    return estimate_recipe(recipe)


def _tables(recipe: Recipe, reports: dict[str, MemoryReport]) -> list[RenderableType]:
    from mem_gpt_cli.estimate import precision_table
    from mem_gpt_cli.report import table

    shown = [table.summary(report) for report in list(reports.values())[-1:]]
    if len(reports) > 1:
        shown.append(table.comparison(reports))
    else:
        shown.append(table.precisions(precision_table(recipe)))
    return shown
