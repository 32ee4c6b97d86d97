"""Which matrices of a model get an adapter: the same for formula and modules, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.quantization.plan import Role
from mem_gpt_cli.recipe.problems import did_you_mean, position_of
from mem_gpt_cli.recipe.schema import Recipe

Matrix = tuple[str, Role]
"""The path of a linear layer (or ``Conv1D``), and whether it is the ``head`` or one of the layers."""


def targeted(matrices: Sequence[Matrix], recipe: Recipe, architecture: str) -> Sequence[str]:
    """The paths that ``adapters.targets`` names, in the model's order; without targets all but the head.

    A target is a path or the end of one, from a dot on: ``c_proj``, ``attn.c_proj``.

    Args:
        matrices: what can have an adapter.
        recipe: where the targets stand.
        architecture: what the model calls its kind.

    Raises:
        RecipeError: for a target that names none of them.
    """
    targets = recipe.adapters.targets
    if targets is None:
        return [path for path, role in matrices if role == "linear"]
    for target in targets:
        if not any(_names(target, path) for path, _ in matrices):
            ends = list(dict.fromkeys(path.rpartition(".")[2] for path, _ in matrices))
            raise RecipeError(
                f"adapters.targets: {target!r} names no matrix of {architecture} that can have an adapter"
                f"{did_you_mean(target, ends) or ':'} there are {', '.join(ends)}",
                position_of(("adapters", "targets"), recipe.text),
            )
    return [path for path, _ in matrices if any(_names(target, path) for target in targets)]


def _names(target: str, path: str) -> bool:
    return path == target or path.endswith(f".{target}")
