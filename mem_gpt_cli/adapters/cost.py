"""What adapters are made of, in bytes, without torch.

LoRA (arXiv:2106.09685) leaves a matrix ``[rows, columns]`` as it is and adds the product of two factors,
``[rank, columns]`` and ``[rows, rank]``. peft keeps them in fp32 beside weights of less precision
(``cast_adapter_dtype`` in peft/tuners/tuners_utils.py), so that they are in fp32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mem_gpt_cli.adapters.folder import read_adapter
from mem_gpt_cli.adapters.targets import Matrix, targeted
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.quantization.placement import HEAD, layers_with, matrix_of, role_of
from mem_gpt_cli.recipe.schema import Recipe

FACTOR_ITEM = 4
DEFAULT_RANK = 8


class Adapted(NamedTuple):
    """One matrix that gets an adapter: the module that holds it, the layer that it is in, if any, its outputs
    (``rows``) and inputs (``columns``), and the rank of its factors.
    """

    module: str
    layer: int | None
    rows: int
    columns: int
    rank: int

    @property
    def factors(self) -> tuple[int, int]:
        """Bytes of the two factors, in the order in which the model names them."""
        return self.rank * self.columns * FACTOR_ITEM, self.rows * self.rank * FACTOR_ITEM


def rank_of(recipe: Recipe) -> int:
    """The rank of new adapters."""
    return recipe.adapters.rank or DEFAULT_RANK


def alpha_of(recipe: Recipe) -> float:
    """What the product of two factors is scaled by, times the rank."""
    return recipe.adapters.alpha or 2 * rank_of(recipe)


def adapted(architecture: Architecture, recipe: Recipe) -> Sequence[Adapted]:
    """The matrices that get an adapter, layer by layer, in the order in which a model names its parameters.

    Raises:
        RecipeError: for a target that names no matrix.
    """
    if recipe.adapters.kind == "none":
        return []
    rank = rank_of(recipe)
    found = [one._replace(rank=rank) for one in matrices(architecture)]
    names: list[Matrix] = [(one.module, "linear" if one.module != HEAD else "head") for one in found]
    chosen = set(targeted(names, recipe, architecture.model_type))
    return [one for one in found if one.module in chosen]


def saved(recipe: Recipe) -> Sequence[Adapted]:
    """The matrices that a recipe's saved adapters stand beside, once for each of them.

    Raises:
        UsageError: for a folder without an adapter.
    """
    return [
        Adapted(one.module, _layer_of(one.module), one.outputs, one.inputs, one.rank)
        for folder in recipe.adapters.load
        for one in read_adapter(folder).factors
    ]


def factor_bytes(architecture: Architecture, recipe: Recipe) -> list[int]:
    """Bytes of each factor, in the order in which a model names them."""
    return [nbytes for one in adapted(architecture, recipe) for nbytes in one.factors]


def matrices(architecture: Architecture) -> Sequence[Adapted]:
    """Every matrix of a linear layer, layer by layer; a head that is tied to the embedding is none."""
    layers: list[list[Adapted]] = [[] for _ in architecture.layers]
    head: list[Adapted] = []
    for tensor in architecture.tensors:
        role = role_of(architecture, tensor)
        if role is None or role == "embedding":
            continue
        rows, columns = matrix_of(architecture, tensor)
        before, star, after = tensor.name.removesuffix(".weight").partition("*")
        if not star:
            head.append(Adapted(before, None, rows, columns, 0))
            continue
        for index in layers_with(architecture, tensor):
            layers[index].append(Adapted(f"{before}{index}{after}", index, rows, columns, 0))
    return [*(one for layer in layers for one in layer), *head]


def _layer_of(module: str) -> int | None:
    """The number of the layer that a path leads into."""
    return next((int(part) for part in module.split(".") if part.isdecimal()), None)
