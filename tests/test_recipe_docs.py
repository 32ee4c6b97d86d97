"""What docs/recipes.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mem_gpt_cli.errors import RecipeErrors
from mem_gpt_cli.recipe import expand, json_schema, load_recipe
from mem_gpt_cli.recipe.problems import leaves

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_table_has_every_key() -> None:
    table = TEXT.partition("## Sections and keys")[2].partition("###")[0]
    named = set(
        re.findall(r"`([a-z_.]+)`", "".join(row.split("|")[1] for row in table.splitlines() if "|" in row))
    )
    short = {".".join(path) for path in leaves() if path[0] not in ("device", "sweep")}
    assert named == short | {"device", "device.allocator", "sweep", "extends", "workload.requests"}


def test_every_value_of_an_enumeration_is_named_in_its_row() -> None:
    rows = {line.split("`")[1]: line for line in TEXT.splitlines() if line.startswith("| `")}
    sections = json_schema()["$defs"]
    checked = 0
    for key, row in rows.items():
        section, _, name = key.partition(".")
        owner = {"kv_cache": "KVCache"}.get(section, section.title())
        for value in sections.get(owner, {}).get("properties", {}).get(name, {}).get("enum", ()):
            assert f"`{value}`" in row, (key, value)
            checked += 1
    assert checked > 40


def test_the_recipes_in_it_load(tmp_path: Path) -> None:
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if "$schema" not in block]
    counts = []
    for block in blocks:
        path = tmp_path / "block.yaml"
        path.write_text(block, encoding="utf-8")
        counts.append(len(expand(load_recipe(path))))
    assert counts == [1, 10]


def test_the_errors_in_it_are_what_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("task: inference\nworkload:\n  bacth: 4\n\n\nkv_cache:\n  kind: off\n", encoding="utf-8")
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(path)
    printed = [str(error).replace(str(path), "memgpt: error: my.yaml") for error in caught.value.errors]
    assert printed == re.findall(r"^memgpt: error: .*$", TEXT, re.MULTILINE)
