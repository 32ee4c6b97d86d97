"""Malformed recipes: each is refused with exit code 2, its position, and a sentence that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.errors import RecipeError, RecipeErrors
from mem_gpt_cli.recipe import expand, load_recipe

ARROW = "--> "


@dataclass(frozen=True)
class Malformed:
    """A recipe file, and the start of each ``line:column: sentence`` that it earns, in order."""

    name: str
    content: bytes
    errors: tuple[str, ...]


def written_cases() -> Iterator[Malformed]:
    """The cases of ``malformed_recipes.txt``."""
    text = Path(__file__).with_name("malformed_recipes.txt").read_text(encoding="utf-8")
    for block in text.split("\n=== ")[1:]:
        name, *lines = block.strip("\n").split("\n")
        recipe = [line for line in lines if not line.startswith(ARROW)]
        errors = [line.removeprefix(ARROW) for line in lines if line.startswith(ARROW)]
        yield Malformed(name, ("\n".join(recipe) + "\n").encode(), tuple(errors))


def bad(name: str, content: str | bytes, error: str) -> Malformed:
    return Malformed(name, content.encode() if isinstance(content, str) else content, (error,))


ALIASES = "".join(f"    a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
FIFTY = list(range(1, 51))

CASES = (
    *written_cases(),
    bad("empty", "", "1:1: is empty: a recipe holds at least one key, such as `task: inference`"),
    bad("binary", b"\x7fELF\0\0\1", "1:1: is a binary file, not a YAML text"),
    bad("not UTF-8", "task: training\ndescription: größe\n".encode("latin-1"), "2:16: is not UTF-8 text"),
    bad("control character", "task: training\ndescription: a\x07b\n", "2:15: the character U+0007 is not"),
    bad("too large", "# " + "x" * 2**20, "1:1: is larger than 1 MiB, which no recipe is"),
    bad("alias to itself", "model: &m\n  config: {a: *m}\n", "1:8: nested more than 32 levels deep"),
    bad("nested deeply", "model: " + "{a: " * 40 + "1" + "}" * 40, "1:136: nested more than 32 levels deep"),
    bad("nested beyond all reason", "a: " + "[" * 5_000, "1:1: nested more than 32 levels deep"),
    bad(
        "aliases without end",
        "model:\n  config:\n    a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + ALIASES,
        "3:9: expands to more than 100,000 values",
    ),
    bad(
        "too many cells",
        f"sweep:\n  axes: {{workload.seq: {FIFTY}, workload.batch: {FIFTY}, workload.seed: {FIFTY}}}\n",
        "1:1: sweep: makes 125,000 cells: a sweep holds 100,000 at most",
    ),
)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def test_there_are_enough_cases_and_no_two_are_equal() -> None:
    assert len(CASES) >= 100
    assert len({case.content for case in CASES}) == len(CASES)
    assert all(case.errors for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_library_refuses_it_at_its_position(case: Malformed, recipe_file: Path) -> None:
    recipe_file.write_bytes(case.content)
    with pytest.raises(RecipeError) as caught:
        expand(load_recipe(recipe_file))
    error = caught.value
    found = error.errors if isinstance(error, RecipeErrors) else (error,)
    assert error.exit_code == 2
    assert len(found) == len(case.errors), str(error)
    for each, expected in zip(found, case.errors, strict=True):
        assert str(each).startswith(f"{recipe_file}:{expected}")
        assert each.position is not None
        assert "\n" not in str(each)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_command_refuses_it_without_a_traceback(
    case: Malformed, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_file.write_bytes(case.content)
    assert cli.run(["recipes", "validate", str(recipe_file)]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(f"bad  {recipe_file}")
    lines = captured.err.splitlines()
    assert len(lines) == len(case.errors)
    for line, expected in zip(lines, case.errors, strict=True):
        assert line.startswith(f"memgpt: error: {recipe_file}:{expected}")


def test_loading_for_a_lens_refuses_it_the_same_way(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_file.write_text("workload: {bacth: 4}\n", encoding="utf-8")
    assert cli.run(["recipes", "show", str(recipe_file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"memgpt: error: {recipe_file}:1:12: workload.bacth: unknown key, did you mean workload.batch?\n"
    )
