"""The flags that every subcommand takes, declared once: which recipe, what to change in it, how to answer.

A command takes a ``Request`` first and is decorated with ``takes_recipe``, which puts the flags there::

    @takes_recipe
    def estimate(request: Request, trace: Annotated[bool, typer.Option("--trace")] = False) -> None:
        recipe = request.recipe()

A command that reads keys which the others do not may give them flags too: ``takes_recipe(flags={...})``;
one that reads fewer leaves theirs out: ``takes_recipe(without=...)``.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args, get_origin, overload

import typer
from pydantic import BeforeValidator

from mem_gpt_cli.cli.startup import with_collector
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


class Request(NamedTuple):
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


Command = Callable[..., None]
NO_FLAGS: Mapping[str, str] = {}


@overload
def takes_recipe(command: Command) -> Command: ...


@overload
def takes_recipe(
    *, flags: Mapping[str, str] = NO_FLAGS, without: Collection[str] = ()
) -> Callable[[Command], Command]: ...


def takes_recipe(
    command: Command | None = None, *, flags: Mapping[str, str] = NO_FLAGS, without: Collection[str] = ()
) -> Any:
    """Put the shared flags where a command takes a ``Request``, its first parameter.

    Args:
        command: the command, where the decorator is written without arguments.
        flags: more flags, of this command alone, and the recipe keys that they set.
        without: shared flags that this command has no use for.
    """
    if command is None:
        return lambda command: _taking(command, {**FLAGS, **flags}, frozenset(without))
    return _taking(command, FLAGS, frozenset())


def _taking(command: Command, flags: Mapping[str, str], without: frozenset[str]) -> Command:
    flags = {flag: key for flag, key in flags.items() if flag not in without}
    around = [parameter for parameter in _around() if parameter.name not in without]
    signature = inspect.signature(command, eval_str=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(signature.parameters.values())[1:]
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        values = {key: given.pop(_name(flag)) for flag, key in flags.items()}
        rest = {parameter.name: given.pop(parameter.name) for parameter in around}
        with_collector()
        command(_request(values, **rest), **given)

    del run.__wrapped__  # its annotations would be read in place of the signature's
    run.__annotations__ = {}
    run.__signature__ = signature.replace(parameters=[*_shared(flags, around), *own])  # type: ignore[attr-defined]
    return run


def _request(
    values: Mapping[str, str | None],
    recipe: str | None,
    recipe_file: str | None,
    set_: list[str] | None,
    json: bool,
    csv: Path | None = None,
) -> Request:
    if recipe and recipe_file:
        raise UsageError(f"two recipes are given, {recipe!r} and --recipe {recipe_file!r}: leave one out")
    return Request(
        source=recipe or recipe_file,
        overrides=tuple(set_ or ()),
        flags={key: _value(key, text) for key, text in values.items() if text is not None},
        json=json,
        csv=csv,
    )


def _shared(flags: Mapping[str, str], around: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """All flags in the order of the help: the recipe, its keys, and how to answer."""
    recipe, recipe_file, *answer = around
    keys = [_parameter(_name(flag), str, _key_option(flag, key)) for flag, key in flags.items()]
    return [recipe, recipe_file, *keys, *answer]


@functools.cache
def _around() -> tuple[inspect.Parameter, ...]:
    """The flags that stand for no key."""
    return (
        _parameter(
            "recipe",
            str,
            typer.Argument(help="A recipe file, or the name of a shipped recipe.", metavar="RECIPE"),
        ),
        _parameter("recipe_file", str, _option("--recipe", "The same as a flag.", "FILE")),
        _parameter(
            "set_",
            list[str],
            _option("--set", "Any recipe key, e.g. model.dropout=0; may be repeated.", "KEY=VALUE"),
        ),
        _parameter(
            "json", bool, typer.Option("--json", help="Print one JSON object and nothing else."), False
        ),
        _parameter("csv", Path, typer.Option("--csv", help="Append one row to this file.", metavar="PATH")),
    )


def _key_option(flag: str, key: str) -> Any:
    """The option of a flag, described as the recipe describes the key.

    Its value stays a text: the recipe reads and refuses it, so that a flag and a file get the same answer.
    """
    field = _field(key)
    choices, text = _choices(field), field.description or ""
    metavar = "N" if _is_count(field) else "X" if _is_real(field) else "TEXT"
    if choices and len("|".join(choices)) > _LONGEST_METAVAR:
        metavar, text = "NAME", f"One of {', '.join(choices)}. {text}"
    elif choices:
        metavar = "|".join(choices)
    return _option(f"--{flag}", text, metavar, autocompletion=(lambda: choices) if choices else None)


def _field(key: str) -> FieldInfo:
    *sections, last = key.split(".")
    model: Any = Recipe
    for section in sections:
        model = model.model_fields[section].annotation
    return model.model_fields[last]  # type: ignore[no-any-return]


def _layers(field: FieldInfo) -> list[Any]:
    """Everything that an annotation is made of: ``int``, ``None`` and the metadata of ``Positive | None``."""
    layers = [field.annotation, *field.metadata]
    for layer in layers:
        layers.extend(get_args(layer))
    return layers


def _choices(field: FieldInfo) -> list[str]:
    return [choice for layer in _layers(field) if get_origin(layer) is Literal for choice in get_args(layer)]


def _is_count(field: FieldInfo) -> bool:
    layers = _layers(field)
    return int in layers and not any(isinstance(layer, BeforeValidator) for layer in layers)


def _is_real(field: FieldInfo) -> bool:
    return float in _layers(field)


def _value(key: str, text: str) -> str | int | float:
    """The number where the key is one and the text is too; else the text, which the recipe may refuse."""
    field = _field(key)
    if _is_count(field) and text.removeprefix("-").isdecimal():
        return int(text)
    try:
        number = float(text) if _is_real(field) else math.nan
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _option(name: str, text: str, metavar: str, **more: Any) -> Any:
    return typer.Option(name, help=text, metavar=metavar, rich_help_panel=_PANEL, show_default=False, **more)


def _parameter(name: str, kind: Any, declaration: Any, default: Any = None) -> inspect.Parameter:
    annotation = Annotated[kind if default is not None else kind | None, declaration]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _name(flag: str) -> str:
    return flag.replace("-", "_")
