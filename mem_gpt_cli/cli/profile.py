"""``memgpt profile``: run the workload for real, and set what was measured beside what was predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mem_gpt_cli.cli import answer, console
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.cli.startup import hush_libraries
from mem_gpt_cli.errors import UnsupportedError, UsageError
from mem_gpt_cli.report.sizes import render_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.report.model import MemoryReport


@takes_recipe
def profile(
    request: Request,
    timeline: Annotated[
        Path | None,
        typer.Option(
            "--timeline", help="Draw memory over time into this .html, .png, .svg or .csv.", metavar="PATH"
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            "--history",
            help="On a GPU, write every action of torch's allocator into this .json or .json.gz.",
            metavar="PATH",
        ),
    ] = None,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="Show what each new token adds, with cache and without.")
    ] = False,
) -> None:
    """Run the workload for real and measure its memory and its speed.

    Shows what was measured beside what formula and trace predict of the same recipe.
    """
    from mem_gpt_cli.estimate import estimate
    from mem_gpt_cli.profile import profile as measure

    hush_libraries()
    recipe = request.recipe()
    if per_token:
        if timeline or history or request.csv:
            raise UsageError("--per-token is a table of its own: leave --timeline, --history and --csv out")
        _show_per_token(request, recipe)
        return
    with _progress() as progress:
        measured = measure(recipe, progress=progress, timeline=timeline, history=history)
    formula = _predicted(estimate, recipe)  # after the measurement, so as to take no part in its memory
    measured = answer.advised(request, recipe, measured, formula)
    answer.give(request, measured, lambda: _tables(recipe, measured, formula))
    for what, path in {"memory over time": timeline, "the allocator's history": history}.items():
        if path:
            console.people().print(f"{what}: {path}", soft_wrap=True)
    answer.hold_to_budget(recipe, measured)


def _show_per_token(request: Request, recipe: Recipe) -> None:
    import json

    from mem_gpt_cli.profile import per_token
    from mem_gpt_cli.report.per_token import table

    with _progress() as progress:
        tokens = per_token(recipe, progress=progress)
    if request.json:
        print(json.dumps(tokens.to_dict(), indent=2))
    else:
        console.data().print(table(tokens))


def _tables(recipe: Recipe, measured: MemoryReport, formula: MemoryReport | None) -> Iterator[RenderableType]:
    """What was measured, beside the predictions."""
    from mem_gpt_cli.report import table
    from mem_gpt_cli.report.advice import advice_line
    from mem_gpt_cli.report.ladder import has_ladder
    from mem_gpt_cli.trace import trace

    reports = {
        "estimate": formula,
        "trace": _predicted(trace, recipe),
        "profile": measured,
    }
    yield table.comparison(reports)
    yield table.places(measured)
    if advice := advice_line(measured):
        yield advice
    if "pages" in measured.details:
        from mem_gpt_cli.report.pages import pages_table

        yield pages_table(measured.details["pages"])
    if measured.quality:
        from mem_gpt_cli.report.quality import quality_table

        yield quality_table(measured.quality)
    if has_ladder(measured):
        yield table.ladder_table(measured)


def _predicted(lens: Callable[[Recipe], MemoryReport], recipe: Recipe) -> MemoryReport | None:
    """A lens's report, ``None`` and a warning where it has none: what was measured is shown all the same."""
    try:
        return lens(recipe)
    except UnsupportedError as error:
        console.warn(f"an empty column: {error}")
        return None


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int, int | None], None]]:
    """The bar, with the phase that runs and what its tensors hold.

    Raises:
        GateError: if the device's memory runs out meanwhile.
    """
    from mem_gpt_cli.profile.exhaustion import exhausted, ran_out_of_memory

    running = "the preparation"
    with console.progress() as bar:
        task = bar.add_task("preparing", total=None)

        def show(phase: str, step: int, steps: int, live_bytes: int | None) -> None:
            nonlocal running
            running = phase.replace("_", " ")
            live = "" if live_bytes is None else f", {render_bytes(live_bytes)}"
            bar.update(task, description=f"{running}{live}", completed=step, total=steps)

        try:
            yield show
        except (RuntimeError, MemoryError) as error:
            if ran_out_of_memory(error):
                raise exhausted(error, running) from error
            raise
