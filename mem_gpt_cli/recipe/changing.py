"""A recipe like another one, some keys apart: what Python code does in place of ``--set``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mem_gpt_cli.recipe.schema import Recipe

_SIZES = ("batch", "seq", "prompt_tokens", "new_tokens", "requests")


def changed(recipe: Recipe, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe with other values in some sections: ``{"attention": {"backend": "flash"}}``.

    Raises:
        ValueError: for a value that the schema refuses.
    """
    data = recipe.model_dump(exclude_unset=True)
    for section, values in changes.items():
        data[section] = {**(data.get(section) or {}), **values}
    return Recipe.model_validate(data).read_from(recipe.text)


def for_prompts(recipe: Recipe, lengths: Sequence[int], new_tokens: int) -> Recipe:
    """The recipe with the sizes of these prompts, of ``lengths`` tokens, that go through the model together.

    Unlike lengths are unlike ``requests``; so are the requests of a paged cache, which pads none.
    """
    data = recipe.model_dump(exclude_unset=True)
    workload = {key: value for key, value in data.get("workload", {}).items() if key not in _SIZES}
    if len(set(lengths)) == 1 and recipe.kv_cache.kind != "paged":
        workload |= {"batch": len(lengths), "prompt_tokens": lengths[0]}
    else:
        workload["requests"] = {"lengths": list(lengths)}
    data["workload"] = workload | {"new_tokens": new_tokens}
    return Recipe.model_validate(data).read_from(recipe.text)
