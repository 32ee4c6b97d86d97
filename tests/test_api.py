"""The package's own functions: what ``import mem_gpt_cli`` offers."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

import mem_gpt_cli


def test_all_is_sorted_complete_and_there() -> None:
    names = mem_gpt_cli.__all__
    assert names == sorted(names)
    public = {name for name in vars(mem_gpt_cli) if not name.startswith("_")}
    own = {name for name in public if getattr(vars(mem_gpt_cli)[name], "__module__", "") == "mem_gpt_cli"}
    assert own <= set(names)
    for name in names:
        assert getattr(mem_gpt_cli, name) is not None
        assert name in dir(mem_gpt_cli)


def test_the_report_and_the_recipe_are_those_of_their_rooms() -> None:
    from mem_gpt_cli.recipe import Recipe
    from mem_gpt_cli.report import MemoryReport

    assert mem_gpt_cli.Recipe is Recipe
    assert mem_gpt_cli.MemoryReport is MemoryReport


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        mem_gpt_cli.nothing  # noqa: B018


@pytest.mark.parametrize("lens", ["estimate", "trace", "profile"])
def test_a_lens_stays_a_function_after_its_room_was_imported(lens: str) -> None:
    """The import of ``mem_gpt_cli.estimate`` must not put the module in the function's place."""
    before = getattr(mem_gpt_cli, lens)
    room = import_module(f"mem_gpt_cli.{lens}")
    assert inspect.isfunction(getattr(room, lens))
    assert getattr(mem_gpt_cli, lens) is before
    assert inspect.isfunction(before)
