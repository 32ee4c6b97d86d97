"""The shape of the house: who may import whom, and what starts without the heavy libraries."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import mem_gpt_cli
from mem_gpt_cli.cli.main import SUBCOMMANDS

PACKAGE = Path(mem_gpt_cli.__file__).parent
ORDER: tuple[frozenset[str], ...] = (
    frozenset({"cli"}),
    frozenset({"bench", "finetune"}),
    frozenset({"estimate", "trace", "profile", "doctor"}),
    frozenset({"quality"}),
    frozenset({"workload"}),
    frozenset({"adapters"}),
    frozenset({"quantization", "attention", "kv_cache", "checkpointing", "optimizers", "loss"}),
    frozenset({"ledger"}),
    frozenset({"model"}),
    frozenset({"devices"}),
    frozenset({"recipe", "report", "allocator"}),
)
"""Rooms from the top to the bottom: each imports from the rows below its own."""

COMMON = frozenset({"errors", "_version"})
FACADE = ("__init__", "__main__", "quantized_model")
"""The package's own functions, which stand above all rooms."""

HANDED_OUT: dict[str, str] = {"quantization": "quantized_model"}
"""Rooms whose ``__init__`` hands out a name of the facade when it is asked for: that users find it where they
look for it. No other file of the room may know of it, and importing the room does not import it."""

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Imports between rooms of one row, each with its reason."""

HEAVY = ("torch", "transformers", "pandas", "matplotlib", "plotly", "huggingface_hub")


@cache
def rooms_imported(path: Path) -> tuple[tuple[str, int], ...]:
    """Each room that a file imports, also inside functions, with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import out from mem_gpt_cli"
            names = [node.module or ""]
            if node.module == "mem_gpt_cli":
                names = [f"mem_gpt_cli.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "mem_gpt_cli" and rest:
                found.append((rest.split(".")[0], node.lineno))
    return tuple(found)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def row_of(room: str) -> int:
    return next(number for number, rooms in enumerate(ORDER) if room in rooms)


def test_every_room_has_its_place() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= frozenset().union(*ORDER)
    assert len(rooms) >= 12


def test_rooms_import_only_downwards() -> None:
    wrong, seen = [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        if room in COMMON or room in FACADE:
            continue
        for other, line in rooms_imported(path):
            seen += 1
            if other == room or other in COMMON or (room, other) in EXCEPTIONS:
                continue
            if path.name == "__init__.py" and HANDED_OUT.get(room) == other:
                continue
            if row_of(other) <= row_of(room):
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {room} imports {other}")
    assert not wrong, "\n".join(wrong)
    assert seen > 50


def test_every_exception_is_needed() -> None:
    used = {(room_of(path), other) for path in PACKAGE.rglob("*.py") for other, _ in rooms_imported(path)}
    assert set(EXCEPTIONS) <= used


@pytest.mark.parametrize(("room", "facade"), HANDED_OUT.items())
def test_what_a_room_hands_out_is_not_imported_with_it(room: str, facade: str) -> None:
    done = python(f"import sys, mem_gpt_cli.{room}; print('mem_gpt_cli.{facade}' in sys.modules)")
    assert done.stdout.strip() == "False"
    assert facade in {other for other, _ in rooms_imported(PACKAGE / room / "__init__.py")}


def test_common_ground_imports_no_room() -> None:
    for name in COMMON:
        assert not rooms_imported(PACKAGE / f"{name}.py")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("MEMGPT_DEBUG", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, env=environment
    )


LOADED = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
COMMAND = "import sys; from mem_gpt_cli.cli.main import run; code = run(sys.argv[1:])\n{}\nsys.exit(code)"


@pytest.mark.parametrize(
    "module",
    [
        "mem_gpt_cli",
        "mem_gpt_cli.cli.main",
        "mem_gpt_cli.recipe",
        "mem_gpt_cli.report",
        "mem_gpt_cli.report.table",
        "mem_gpt_cli.model",
        "mem_gpt_cli.estimate",
        *sorted(
            ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            for path in PACKAGE.rglob("cost.py")
        ),
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    done = python(f"import {module}\n{LOADED}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["estimate", "--model", "gpt2-xl"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    done = python(COMMAND.format(LOADED), *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout


@pytest.mark.parametrize("subcommand", sorted(SUBCOMMANDS))
def test_every_subcommand_has_its_help_and_no_heavy_start(subcommand: str) -> None:
    done = python(COMMAND.format(LOADED), subcommand, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert f"memgpt {subcommand}" in done.stdout
