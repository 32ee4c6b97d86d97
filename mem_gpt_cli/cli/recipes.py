"""``memgpt recipes``: the shipped recipes, what one resolves to, whether files are valid, the JSON Schema."""

from __future__ import annotations

import json as json_text
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from mem_gpt_cli.cli import console
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.errors import EnvironmentUnavailableError, RecipeError, RecipeErrors, UsageError

if TYPE_CHECKING:
    from mem_gpt_cli.recipe import Cell
    from mem_gpt_cli.recipe.schema import Recipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show and check recipes; print their JSON Schema for editors.",
)


@app.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array and nothing else.")] = False,
) -> None:
    """List the shipped recipes."""
    from mem_gpt_cli.recipe import expand, load_recipe
    from mem_gpt_cli.recipe.shipped import by_name

    rows: list[dict[str, Any]] = []
    for name, path in by_name().items():
        recipe = load_recipe(path)
        cells = expand(recipe)
        rows.append(
            {
                "name": name,
                "models": list(dict.fromkeys(cell.recipe.model.name for cell in cells)),
                "tasks": list(dict.fromkeys(cell.recipe.task for cell in cells)),
                "cells": len(cells),
                "description": recipe.description,
                "path": str(path),
            }
        )
    if json:
        print(json_text.dumps(rows, indent=2))
        return
    _print_list(rows)


def _print_list(rows: list[dict[str, Any]]) -> None:
    """Names, never cut, and beside each its description above what it runs."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, min_width=max(len(row["name"]) for row in rows))
    table.add_column()
    for row in rows:
        cells = f"{row['cells']} {'cell' if row['cells'] == 1 else 'cells'}"
        runs = f"{', '.join(row['tasks'])} · {', '.join(row['models'])} · {cells}"
        what = Text(row["description"]).append("\n").append(runs, style="dim")
        table.add_row(Text(row["name"], style="bold"), what)
    console.data().print(table)


@app.command()
@takes_recipe
def show(request: Request) -> None:
    """Print a recipe with everything it extends, every flag and every default filled in.

    What is printed is a recipe again: save it to run exactly this.
    """
    from mem_gpt_cli.recipe import resolved, to_yaml

    if request.csv:
        raise UsageError("--csv belongs to commands that answer with a row: leave it out")
    recipe = request.recipe()
    print(json_text.dumps(resolved(recipe), indent=2) if request.json else to_yaml(recipe).rstrip())


@app.command()
def validate(
    files: Annotated[
        list[str], typer.Argument(help="Recipe files, or names of shipped recipes.", metavar="FILES...")
    ],
) -> None:
    """Check recipes: each key and value, each cell of a sweep, and which lenses can answer.

    Prints a line a file to stdout, the errors to stderr, and ends with exit code 2 when a file is bad.
    """
    verdicts = [check(name) for name in files]
    for verdict in verdicts:
        print(f"{'bad' if verdict.errors else 'ok '}  {verdict.name}  {verdict.summary}")
        for error in verdict.errors:
            typer.echo(f"memgpt: error: {error}", err=True)
    if any(verdict.errors for verdict in verdicts):
        raise typer.Exit(RecipeError.exit_code)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors that complete and check YAML."""
    from mem_gpt_cli.recipe import json_schema

    print(json_text.dumps(json_schema(), indent=2))


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one recipe file."""

    name: str
    summary: str
    errors: tuple[RecipeError, ...] = ()


def check(name: str) -> Verdict:
    """Load and expand the recipe ``name``, and find out which lenses answer for all of its cells."""
    from mem_gpt_cli.recipe import expand, load_recipe

    try:
        cells = expand(load_recipe(Path(name)))
        lenses = _lenses(cells)
        _find_names(cells)
    except RecipeErrors as found:
        return Verdict(name, f"{len(found.errors)} errors", found.errors)
    except RecipeError as error:
        return Verdict(name, "1 error", (error,))
    except UsageError as error:
        return Verdict(name, "1 error", (RecipeError(f"{name}: {error}"),))
    return Verdict(name, f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}, {', '.join(lenses)}")


def _find_names(cells: tuple[Cell, ...]) -> None:
    """Look every cell's model and GPU up; a model that only the hub can tell of is left to the run.

    Raises:
        UsageError: for a name that leads nowhere.
    """
    from mem_gpt_cli.attention.kv_heads import source_of
    from mem_gpt_cli.devices.catalogue import gpu_of

    for cell in {cell.recipe.device.name: cell for cell in cells}.values():
        gpu_of(cell.recipe)
    for recipe in {_model_of(cell.recipe): cell.recipe for cell in cells}.values():
        with suppress(EnvironmentUnavailableError):
            source_of(recipe)


def _model_of(recipe: Recipe) -> tuple[str, int | None]:
    """What decides which model a recipe runs."""
    return recipe.model.model_dump_json(), recipe.attention.kv_heads


def _lenses(cells: tuple[Cell, ...]) -> list[str]:
    """The lenses that answer for every cell.

    Raises:
        RecipeError: there is none; it says what stands in the way of the most willing one, ``estimate``.
    """
    from mem_gpt_cli.recipe import refuse_unavailable
    from mem_gpt_cli.recipe.refusals import Lens

    willing = []
    for lens in get_args(Lens):
        try:
            for cell in cells:
                refuse_unavailable(cell.recipe, lens)
        except RecipeError:
            continue
        willing.append(lens)
    if not willing:
        for cell in cells:
            refuse_unavailable(cell.recipe, "estimate")
    return willing
