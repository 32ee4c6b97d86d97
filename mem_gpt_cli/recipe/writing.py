"""A recipe as data and as YAML, and the JSON Schema that editors check recipes with."""

from __future__ import annotations

from typing import Any

import yaml

from mem_gpt_cli.recipe.document import add_core_resolvers
from mem_gpt_cli.recipe.schema import Recipe


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe with its value, defaults included, in types that JSON knows."""
    data = recipe.model_dump(mode="json")
    # The one key that says nothing by its default.
    if recipe.sweep is None:
        del data["sweep"]
    return data


def as_run(recipe: Recipe) -> dict[str, Any]:
    """``resolved``, with the lengths that the recipe leaves open filled in: what a report holds."""
    data = resolved(recipe)
    lengths = recipe.lengths
    data["workload"]["seq"] = lengths.seq
    if recipe.task == "inference":
        data["workload"] |= {"prompt_tokens": lengths.prompt, "new_tokens": lengths.new}
    return data


def to_yaml(recipe: Recipe) -> str:
    """A recipe as YAML that loads to an equal recipe, by the rules of YAML 1.1 as well as 1.2."""
    return yaml.dump(resolved(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that either version of YAML would read as something else, such as ``1e-4`` and ``no``."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)  # lists stand below their key, as in the shipped recipes


_BREAKS = frozenset("\x85\u2028\u2029\ufeff")
"""Characters that PyYAML writes into plain text and does not read back: they need escapes."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _BREAKS.intersection(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


add_core_resolvers(_Dumper)
_Dumper.add_representer(str, _text)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file, with ``extends`` and the short forms."""
    schema = Recipe.model_json_schema()
    properties, sections = schema["properties"], schema["$defs"]
    extends = {
        "type": "string",
        "description": "The recipe that this one changes: a file beside it, or a shipped recipe's name.",
    }
    long_form = {"$ref": "#/$defs/Device"}
    short_form = {"type": "string", "description": "Short for {name: ...}."}
    properties["device"] = {"anyOf": [short_form, long_form], "description": "Where it runs."}
    lengths = sections["Requests"]["properties"]["lengths"]["anyOf"][0]
    requests = sections["Workload"]["properties"]["requests"]
    requests["anyOf"] = [{**lengths, "description": "Short for {lengths: [...]}."}, *requests["anyOf"]]
    memory = sections["Budget"]["properties"]["memory"]
    size = {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgGtT]?[iI]?[bB])?\s*$"}
    memory["anyOf"] = [memory["anyOf"][0], size, {"type": "null"}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "memgpt recipe",
        "properties": {"extends": extends, **properties},
    }
