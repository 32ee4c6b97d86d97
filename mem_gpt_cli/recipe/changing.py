"""A recipe like another one, some keys apart: what Python code does in place of ``--set``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from mem_gpt_cli.recipe.document import Node
from mem_gpt_cli.recipe.problems import validate
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.recipe.writing import resolved

_SIZES = ("batch", "seq", "prompt_tokens", "new_tokens", "requests")
_SECTIONS_OF_A_TEXT = ("model", "quantization", "attention", "adapters", "sampling")
_ROOM = ("max_tokens", "page_size", "pages", "batch_tokens")
"""Keys of ``kv_cache`` that say how much room there is: no text depends on them."""


def changed(recipe: Recipe, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe with other values in some sections: ``{"attention": {"backend": "flash"}}``.

    Raises:
        RecipeError: for keys and values that a recipe does not know.
        RecipeErrors: for several.
    """
    data = recipe.model_dump(exclude_unset=True)
    for section, values in changes.items():
        data[section] = {**(data.get(section) or {}), **values}
    return validate(Node.of(data)).read_from(recipe.text)


def text_digest(recipe: Recipe, **more: Any) -> str:
    """16 hex digits that stand for what makes a text of a prompt and a seed, as far as the recipe says it.

    The model and its options, sampling and the number of new tokens; not the lengths of prompts, what the
    device is, or how much room there is. ``more`` is what the recipe does not say.
    """
    data = resolved(recipe)
    made_by = {section: data[section] for section in _SECTIONS_OF_A_TEXT} | more
    made_by["kv_cache"] = {key: value for key, value in data["kv_cache"].items() if key not in _ROOM}
    made_by["workload"] = {"new_tokens": recipe.lengths.new, "autocast": recipe.workload.autocast}
    return sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]


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
