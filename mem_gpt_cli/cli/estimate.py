"""``memgpt estimate``: where the memory will go, by formula or by tracing the real code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mem_gpt_cli.cli import answer, console
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.cli.startup import hush_libraries, without_collector
from mem_gpt_cli.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mem_gpt_cli.recipe.schema import Recipe


@takes_recipe
def estimate(
    request: Request,
    trace: Annotated[
        bool, typer.Option("--trace", help="Run the real code on fake tensors: exact, without weights.")
    ] = False,
    full_depth: Annotated[
        bool, typer.Option("--full-depth", help="With --trace: run every layer, extrapolate none.")
    ] = False,
    events: Annotated[
        Path | None,
        typer.Option("--events", help="With --trace: write each allocation to this file.", metavar="PATH"),
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(
            "--timeline",
            help="With --trace: draw memory over its events into this .html, .png, .svg or .csv.",
            metavar="PATH",
        ),
    ] = None,
    curve: Annotated[
        Literal["seq", "batch"] | None,
        typer.Option("--curve", help="How the peak grows with length or batch.", metavar="seq|batch"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="With --curve: draw it, as PNG or SVG.", metavar="PATH")
    ] = None,
) -> None:
    """Predict where the memory will go, without weights and without a device.

    In closed form by default, in milliseconds; with --trace the real transformers code runs on fake tensors.
    """
    if (full_depth or events or timeline) and not trace:
        raise UsageError("--full-depth, --events and --timeline belong to a trace: add --trace")
    if plot and not curve:
        raise UsageError("--plot draws a curve: add --curve seq or --curve batch")
    if curve and trace:
        raise UsageError("a curve is computed in closed form: leave --trace or --curve out")
    recipe = request.recipe()
    if curve and recipe.budget.memory is not None:
        raise UsageError(
            "no budget holds for a curve: leave --curve or --budget out, or set budget.memory=null"
        )
    if curve:
        _show_curve(request, recipe, curve, plot)
    elif trace:
        _show_trace(request, recipe, full_depth, events, timeline)
    else:
        with without_collector():
            _show_formula(request, recipe)


def _show_formula(request: Request, recipe: Recipe) -> None:
    from mem_gpt_cli.estimate import estimate as by_formula
    from mem_gpt_cli.estimate import precision_table

    report = by_formula(recipe)
    report = answer.advised(request, recipe, report, report)

    def tables() -> list[RenderableType]:
        from mem_gpt_cli.report import table

        return [table.summary(report), table.precisions(precision_table(recipe, report))]

    answer.give(request, report, tables)
    answer.hold_to_budget(recipe, report)


def _show_trace(
    request: Request, recipe: Recipe, full_depth: bool, events: Path | None, timeline: Path | None
) -> None:
    from mem_gpt_cli.estimate import estimate as by_formula
    from mem_gpt_cli.trace import trace as by_tracing

    hush_libraries()
    try:
        formula = by_formula(recipe)
    except UnsupportedError as error:
        console.warn(f"no formula for this model, only the trace: {error}")
        formula = None
    report = by_tracing(recipe, full_depth=full_depth, events=events, timeline=timeline)
    report = answer.advised(request, recipe, report, formula)

    def tables() -> list[RenderableType]:
        from mem_gpt_cli.report import table
        from mem_gpt_cli.report.pages import pages_table

        side_by_side = table.comparison({"estimate": formula, "trace": report}, titled=False)
        pages = [pages_table(report.details["pages"])] if "pages" in report.details else []
        return [table.summary(report), side_by_side, table.places(report), *pages]

    answer.give(request, report, tables)
    if timeline:
        console.people().print(f"memory over time: {timeline}", soft_wrap=True)
    answer.hold_to_budget(recipe, report)


def _show_curve(request: Request, recipe: Recipe, axis: Literal["seq", "batch"], plot: Path | None) -> None:
    from mem_gpt_cli.estimate.curve import curve, part_heights

    points = curve(recipe, axis)

    def table() -> RenderableType:
        from mem_gpt_cli.report.curve import growth

        return growth(axis, points, part_heights(points))

    if plot:
        from mem_gpt_cli.estimate.plot import draw, finer

        draw(axis, curve(recipe, axis, finer(list(points))), plot)
    answer.give_curve(request, axis, points, table)
