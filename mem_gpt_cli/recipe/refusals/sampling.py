"""Which ways of picking a token exclude each other."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Recipe


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """Limits on a choice that is none: at temperature 0 the likeliest token is taken."""
    if recipe.sampling.temperature == 0:
        for key in ("top_k", "top_p"):
            if getattr(recipe.sampling, key) is not None:
                yield (
                    ("sampling", key),
                    "changes nothing at temperature 0, which takes the likeliest token: "
                    "set sampling.temperature, or leave it out",
                )
