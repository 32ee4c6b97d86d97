"""``memgpt bench``: a sweep, each cell predicted and measured in a process of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mem_gpt_cli.bench.outcome import LENSES
from mem_gpt_cli.bench.sweep import DEFAULT_TIMEOUT_S, Plan, Watcher, run_sweep
from mem_gpt_cli.cli import console
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.errors import IncompleteSweepError, UsageError

if TYPE_CHECKING:
    from mem_gpt_cli.bench.columns import Row
    from mem_gpt_cli.recipe import Cell
    from mem_gpt_cli.report.model import Lens

RESULTS = Path("results")


@takes_recipe
def bench(
    request: Request,
    lenses: Annotated[
        str,
        typer.Option("--lenses", help="Which lenses to ask, separated by commas.", metavar="NAMES"),
    ] = ",".join(LENSES),
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds after which a cell is ended.", metavar="SECONDS")
    ] = DEFAULT_TIMEOUT_S,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take the cells that the CSV holds as ok, run the others.")
    ] = False,
) -> None:
    """Run every cell of a recipe's sweep: predicted by formula and by trace, and measured.

    Each cell runs in a process of its own, so that none can spoil another or end the sweep.

    A cell's row is in the CSV as soon as it is over: results/RECIPE.csv, or --csv.
    """
    from mem_gpt_cli.recipe import expand

    if timeout <= 0:
        raise UsageError(f"--timeout {timeout:g}: give a number of seconds above 0")
    cells = expand(request.recipe())
    name = Path(request.source).stem if request.source else "default"
    plan = Plan(
        name=name,
        cells=cells,
        csv=request.csv or RESULTS / f"{name}.csv",
        lenses=_lenses(lenses),
        timeout_s=timeout,
        resume=resume,
    )
    rows: list[Row] = []
    try:
        _run(plan, rows)
    finally:
        if rows:
            _show(request, plan, rows)
    _judge(rows)


def _lenses(names: str) -> tuple[Lens, ...]:
    asked = [name.strip() for name in names.split(",")]
    unknown = [name for name in asked if name not in LENSES]
    if unknown:
        raise UsageError(f"--lenses: {unknown[0]!r} is no lens: choose from {', '.join(LENSES)}")
    return tuple(lens for lens in LENSES if lens in asked)


def _run(plan: Plan, rows: list[Row]) -> None:
    """Run the sweep; ``rows`` grows as it goes, so that an interrupt leaves what was measured."""
    with _progress(plan) as (watcher, done):
        for row in run_sweep(plan, watcher):
            rows.append(row)
            done(row)


def _show(request: Request, plan: Plan, rows: Sequence[Row]) -> None:
    if request.json:
        import json

        answer = {
            "recipe": plan.name,
            "csv": str(plan.csv),
            "cells_in_all": len(plan.cells),
            "statuses": dict(Counter(row["status"] for row in rows)),
            "cells": rows,
        }
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        from mem_gpt_cli.bench.table import sweep_table

        console.data().print(sweep_table(plan.cells, rows))
    console.people().print(f"{len(rows)} of {len(plan.cells)} cells in {plan.csv}", soft_wrap=True)


def _judge(rows: Sequence[Row]) -> None:
    """Too large and unsupported are answers; a cell that broke has none.

    Raises:
        IncompleteSweepError: if there is such a cell.
    """
    broken = [row for row in rows if row["status"] == "error"]
    if broken:
        raise IncompleteSweepError(
            f"{len(broken)} of {len(rows)} cells ended in an error, the first of them {broken[0]['key']!r}: "
            "mend the cause and run again with --resume"
        )


@contextmanager
def _progress(plan: Plan) -> Iterator[tuple[Watcher, Any]]:
    """A bar on stderr and a line for each finished cell; the lines alone where stderr is no terminal."""
    with console.progress() as bar:
        task = bar.add_task("", total=len(plan.cells))

        class Following:
            key: str | None = None

            def begin(self, cell: Cell) -> None:
                self.key = cell.key
                bar.update(task, description=f"{cell.key}: predicting")

            def phase(self, name: str, step: int, steps: int) -> None:
                bar.update(task, description=f"{self.key}: {name.replace('_', ' ')}, step {step} of {steps}")

        def done(row: Row) -> None:
            bar.advance(task)
            number = int(bar.tasks[task].completed)
            seconds = f" in {row['cell_s']:.1f} s" if row["cell_s"] else ""
            if following.key != row["key"]:  # it was never begun
                seconds = f", from {plan.csv}"
            bar.console.print(
                f"[{number}/{len(plan.cells)}] {row['key']}: {row['status']}{seconds}",
                markup=False,
                soft_wrap=True,
            )

        following = Following()
        yield following, done
