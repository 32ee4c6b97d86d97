"""The command ``memgpt``: its subcommands, and how each ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from mem_gpt_cli._version import __version__
from mem_gpt_cli.cli.startup import leave_all_to_the_system, without_collector
from mem_gpt_cli.errors import MemgptError, RecipeErrors, UsageErrors

SUBCOMMANDS: Mapping[str, str] = {
    "estimate": "mem_gpt_cli.cli.estimate:estimate",
    "profile": "mem_gpt_cli.cli.profile:profile",
    "generate": "mem_gpt_cli.cli.generate:generate",
    "finetune": "mem_gpt_cli.cli.finetune:finetune",
    "bench": "mem_gpt_cli.cli.bench:bench",
    "models": "mem_gpt_cli.cli.models:models",
    "save": "mem_gpt_cli.cli.save:save",
    "adapters": "mem_gpt_cli.cli.adapters:app",
    "recipes": "mem_gpt_cli.cli.recipes:app",
    "doctor": "mem_gpt_cli.cli.doctor:doctor",
}
"""Each subcommand and the function or typer app that is it, in the order of the help."""

DEBUG = "MEMGPT_DEBUG"
INTERRUPTED = 130
BROKEN_PIPE = 141


class LazySubcommands(TyperGroup):
    """Imports a subcommand when it is asked for, so that each starts as fast as it can."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002, D102
        return list(SUBCOMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002, D102
        # An unknown name loads them all: typer proposes the nearest of those it knows.
        for name in (cmd_name,) if cmd_name in SUBCOMMANDS else SUBCOMMANDS:
            self.commands.setdefault(name, _load(name))
        return self.commands.get(cmd_name)


def _load(name: str) -> Any:
    module, _, attribute = SUBCOMMANDS[name].partition(":")
    # Looking for plugins of pydantic costs as much as an estimate, and no recipe has a use for one.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name)(found)
        found = single
    command = get_command(found)
    command.name = name
    return command


app = typer.Typer(
    cls=LazySubcommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    help="Predict, trace and measure where the memory of GPT-style transformers goes.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"memgpt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks, as {DEBUG}=1 does.")] = False,
) -> None:
    """Predict, trace and measure where the memory of GPT-style transformers goes."""
    if debug:
        os.environ[DEBUG] = "1"  # the environment, so that child processes hold to it too


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``memgpt`` with ``arguments`` (those of the process by default) and exit with its code."""
    try:
        with without_collector():
            sys.exit(run(sys.argv[1:] if arguments is None else arguments))
    finally:
        leave_all_to_the_system()


def run(arguments: Sequence[str]) -> int:
    """Run ``memgpt`` and return its exit code; no exception leaves but ``SystemExit``."""
    # transformers remarks on configs in ways that say nothing about memory; a user's own setting wins.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = get_command(app).main(list(arguments), prog_name="memgpt", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (RecipeErrors, UsageErrors) as errors:
        return _fail(errors, [str(error) for error in errors.errors], errors.exit_code)
    except MemgptError as error:
        return _fail(error, [str(error)], error.exit_code)
    except typer.TyperException as error:
        # Without a message the error was that nothing was asked, and the answer, the help, is shown already.
        return _fail(error, [error.format_message()] if error.message else [], error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("memgpt: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return _hang_up()
    except SystemExit as end:
        # typer and rich end the process themselves, with 1, when the reader of a pipe has gone.
        if isinstance(end.__context__, BrokenPipeError):
            return _hang_up()
        raise
    except Exception as error:
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "" if _debugging() else f" (run again with {DEBUG}=1 for the traceback)"
        return _fail(error, [f"this is a bug in memgpt: {summary}{advice}"], 1)


def _fail(error: BaseException, sentences: Sequence[str], code: int) -> int:
    if _debugging():
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    for sentence in sentences:
        print(f"memgpt: error: {sentence}", file=sys.stderr)
    return code


def _debugging() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


def _hang_up() -> int:
    """Whoever read the output has gone: say nothing, not even when Python flushes stdout at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


if __name__ == "__main__":
    main()
