"""The flags that every subcommand takes, declared once: which recipe, what to change in it, how to answer.

A command takes a ``Request`` first and is decorated with ``takes_recipe``, which puts the flags there::

    @takes_recipe
    def estimate(request: Request, trace: Annotated[bool, typer.Option("--trace")] = False) -> None:
        recipe = request.recipe()
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BeforeValidator

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

FLAGS: Mapping[str, str] = {
    "model": "model.name",
    "dtype": "model.dtype",
    "task": "task",
    "batch": "workload.batch",
    "seq": "workload.seq",
    "prompt-tokens": "workload.prompt_tokens",
    "new-tokens": "workload.new_tokens",
    "quantization": "quantization.scheme",
    "attention": "attention.backend",
    "kv-cache": "kv_cache.kind",
    "checkpointing": "checkpointing.policy",
    "adapters": "adapters.kind",
    "optimizer": "optimizer.name",
    "loss": "loss.kind",
    "device": "device.name",
    "budget": "budget.memory",
}
"""The recipe keys that have a flag of their own; ``--set`` reaches all of them."""

_PANEL = "Recipe"
_LONGEST_METAVAR = 22
"""Characters of choices that the help's column of types holds unbroken in 80 columns."""


@dataclass(frozen=True)
class Request:
    """What the shared flags ask for; ``flags`` maps dotted recipe keys to the values given."""

    source: str | None
    overrides: tuple[str, ...]
    flags: Mapping[str, Any]
    json: bool
    csv: Path | None

    def recipe(self) -> Recipe:
        """The recipe that was asked for.

        Raises:
            RecipeErrors: for every mistake in it.
        """
        from mem_gpt_cli.recipe import load_recipe

        return load_recipe(self.source, overrides=self.overrides, flags=self.flags)


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Put the shared flags where ``command`` takes a ``Request``, its first parameter."""
    signature = inspect.signature(command, eval_str=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(signature.parameters.values())[1:]
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        shared = {parameter.name: given.pop(parameter.name) for parameter in _shared()}
        command(_request(**shared), **given)

    del run.__wrapped__  # its annotations would be read in place of the signature's
    run.__annotations__ = {}
    run.__signature__ = signature.replace(parameters=[*_shared(), *own])  # type: ignore[attr-defined]
    return run


def _request(
    recipe: str | None,
    recipe_file: str | None,
    set_: list[str] | None,
    json: bool,
    csv: Path | None,
    **flags: Any,
) -> Request:
    if recipe and recipe_file:
        raise UsageError(f"two recipes are given, {recipe!r} and --recipe {recipe_file!r}: leave one out")
    values = {key: flags[_name(flag)] for flag, key in FLAGS.items()}
    return Request(
        source=recipe or recipe_file,
        overrides=tuple(set_ or ()),
        flags={key: value for key, value in values.items() if value is not None},
        json=json,
        csv=csv,
    )


@functools.cache
def _shared() -> tuple[inspect.Parameter, ...]:
    return (
        _parameter(
            "recipe",
            str,
            typer.Argument(help="A recipe file, or the name of a shipped recipe.", metavar="RECIPE"),
        ),
        _parameter("recipe_file", str, _option("--recipe", "The same as a flag.", "FILE")),
        *(_parameter(_name(flag), *_key_option(flag, key)) for flag, key in FLAGS.items()),
        _parameter(
            "set_",
            list[str],
            _option("--set", "Any recipe key, e.g. workload.steps=3; may be repeated.", "KEY=VALUE"),
        ),
        _parameter(
            "json", bool, typer.Option("--json", help="Print one JSON object and nothing else."), False
        ),
        _parameter("csv", Path, typer.Option("--csv", help="Append one row to this file.", metavar="PATH")),
    )


def _key_option(flag: str, key: str) -> tuple[Any, Any]:
    """Type and option of a flag, taken from the recipe's own declaration of the key."""
    field = _field(key)
    kind, text = _plain_type(field), field.description or ""
    choices = get_args(kind)
    if len("|".join(choices)) > _LONGEST_METAVAR:
        return kind, _option(f"--{flag}", f"One of {', '.join(choices)}. {text}", "NAME")
    return kind, _option(f"--{flag}", text, None)


def _field(key: str) -> FieldInfo:
    *sections, last = key.split(".")
    model: Any = Recipe
    for section in sections:
        model = model.model_fields[section].annotation
    return model.model_fields[last]  # type: ignore[no-any-return]


def _plain_type(field: FieldInfo) -> Any:
    """What the terminal's text is turned into: a choice, an ``int``, or left for the recipe to read."""
    layers = [field.annotation, *field.metadata]
    for layer in layers:
        layers.extend(get_args(layer))
    if any(isinstance(layer, BeforeValidator) for layer in layers):
        return str
    choice = next((layer for layer in layers if get_origin(layer) is Literal), None)
    return choice or (int if int in layers else str)


def _option(name: str, text: str, metavar: str | None) -> Any:
    return typer.Option(name, help=text, metavar=metavar, rich_help_panel=_PANEL, show_default=False)


def _parameter(name: str, kind: Any, declaration: Any, default: Any = None) -> inspect.Parameter:
    annotation = Annotated[kind if default is not None else kind | None, declaration]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _name(flag: str) -> str:
    return flag.replace("-", "_")
