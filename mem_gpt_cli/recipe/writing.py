"""A recipe as data and as YAML, and the JSON Schema that editors check recipes with."""

from __future__ import annotations

from typing import Any

import yaml

from mem_gpt_cli.recipe.schema import Recipe


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe with its value, defaults included, in types that JSON knows; no ``sweep`` if none."""
    data = recipe.model_dump(mode="json")
    if recipe.sweep is None:
        del data["sweep"]
    return data


def to_yaml(recipe: Recipe) -> str:
    """A recipe as YAML that loads to the same recipe again."""
    return yaml.dump(resolved(recipe), Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=110)


class _CoreDumper(yaml.SafeDumper):
    """Quotes what PyYAML's YAML 1.1 would misread, and writes floats so that YAML 1.1 and 1.2 agree on them."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file, with ``extends`` and the short forms."""
    schema = Recipe.model_json_schema()
    properties = schema["properties"]
    extends = {
        "type": "string",
        "description": "A recipe file (relative to this one) or a shipped recipe's name that this one changes.",
    }
    device = properties["device"]
    long_form = {key: value for key, value in device.items() if key == "$ref"}
    name = {"type": "string", "description": "Short for {name: ...}: cpu, cuda, cuda:N or the name of a GPU."}
    properties["device"] = {"anyOf": [long_form, name], "description": "Where it runs."}
    memory = schema["$defs"]["Budget"]["properties"]["memory"]
    size = {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgGtT]?[iI]?[bB])?\s*$"}
    memory["anyOf"] = [memory["anyOf"][0], size, {"type": "null"}]
    schema["properties"] = {"extends": extends, **properties}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "memgpt recipe"}
