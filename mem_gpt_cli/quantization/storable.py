"""Which matrices a backend can hold, and which patterns mean something: the same for formula and modules."""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.errors import RecipeError, UnsupportedError
from mem_gpt_cli.quantization.plan import Method, Plan, Role
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Recipe

_TORCHAO_INT4_ROWS = 16
"""Outputs that torchao's int4 kernel for the CPU packs together."""


def refuse_unmatched(
    names: Sequence[tuple[str, Role]], plan: Plan, recipe: Recipe, architecture: str
) -> None:
    """Pass a plan whose every pattern matches one of the matrices.

    Args:
        names: the path and role of each matrix.
        plan: what is stored how.
        recipe: where the patterns stand.
        architecture: what the model calls its kind.

    Raises:
        RecipeError: for a pattern that matches none.
    """
    for pattern in plan.unmatched(names):
        layer = next((path for path, role in names if role == "linear"), names[0][0])
        raise RecipeError(
            f"quantization.overrides: {pattern!r} matches no matrix of {architecture}: write a "
            f"pattern of paths such as {layer}, or embeddings, or head",
            position_of(("quantization", "overrides"), recipe.text),
        )


def refuse_unstorable(
    path: str, method: Method, rows: int, columns: int, device: str, *, embedding: bool, plain: bool = True
) -> None:
    """Pass a matrix that its backend can hold and compute with.

    Args:
        path: the module that holds it.
        method: how it is to be stored.
        rows: outputs; tokens of an embedding.
        columns: inputs; width of an embedding.
        device: ``cpu`` or ``cuda``.
        embedding: whether it is looked up instead of multiplied with.
        plain: whether an embedding only looks up; some families' multiply what they find.

    Raises:
        UnsupportedError: for a matrix that the backend cannot hold.
    """
    if embedding and (method.backend != "native" or not plain):
        mend = "" if method.backend == "native" else f" in {method.scheme}: choose int8 or int4 of native, or"
        raise UnsupportedError(
            f"{path}: {method.backend} cannot store this embedding{mend or ':'} "
            "leave embeddings (and a head that is tied to them) out of quantization.overrides"
        )
    group = method.group_size or columns
    if (
        method.backend == "torchao"
        and method.scheme == "int4"
        and (columns % group or rows % _TORCHAO_INT4_ROWS)
    ):
        raise UnsupportedError(
            f"{path}: torchao's int4 holds no matrix of {rows} outputs and {columns} inputs in groups of "
            f"{group}: outputs go by {_TORCHAO_INT4_ROWS}, inputs by whole groups; choose backend native, or "
            "another group_size"
        )
    if device == "cpu" and method.scheme in ("nf4", "fp4") and columns % group:
        # bitsandbytes 0.50's CPU kernel reads a block that goes on in the next row with wrong scales
        raise UnsupportedError(
            f"{path} has {columns} inputs in blocks of {group}: bitsandbytes' CPU kernel reads rows that are "
            "no whole blocks wrongly; write a group_size that divides them, or scheme int4"
        )
