"""Which of torch's attention kernels a recipe allows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mem_gpt_cli.attention.cost import LSH_NOT_TAKEN, NO_FLASH
from mem_gpt_cli.attention.lsh_interface import register
from mem_gpt_cli.attention.plan import Lsh
from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.recipe.schema import Recipe

IMPLEMENTATION = {"eager": "eager", "sdpa": "sdpa", "flash": "sdpa"}
"""transformers' name of each backend: ``flash`` is SDPA with its flash kernel alone."""
NO_KERNEL = "No available kernel"
"""How torch begins when none of the kernels that it may use can run (ATen's ``sdp_utils``)."""


@contextmanager
def attention_kernels(recipe: Recipe) -> Iterator[None]:
    """Leave torch's SDPA the kernels that the recipe allows it.

    ``flash`` is SDPA with its flash kernel alone. It must hold in backward as well, where checkpointed
    layers run again.

    Raises:
        UnsupportedError: where flash alone cannot run.
    """
    if recipe.attention.backend != "flash":
        yield
        return
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            # torch says by warnings why no kernel serves, then raises; what it raises is answered below.
            warnings.filterwarnings("ignore", message="(?s).*kernel.*")
            yield
    except RuntimeError as error:
        if NO_KERNEL not in str(error):
            raise
        raise UnsupportedError(NO_FLASH) from error


def implementation(recipe: Recipe) -> str:
    """transformers' name of the recipe's attention; our own is registered there under its name."""
    if recipe.attention.backend == "lsh":
        return register(Lsh.of(recipe.attention))
    return IMPLEMENTATION[recipe.attention.backend]


def check_attention(model: torch.nn.Module, recipe: Recipe) -> None:
    """Refuse a model whose code calls an attention of its own, whatever is registered.

    Raises:
        UnsupportedError: for such a model where the recipe wants memgpt's attention.
    """
    if recipe.attention.backend == "lsh" and not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedError(LSH_NOT_TAKEN)


def attention_note(model: torch.nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """What to tell of a model that lacks the recipe's attention and runs another; mostly nothing."""
    runs = getattr(model.config, "_attn_implementation", None)
    if runs in (None, implementation(recipe)):
        return ()
    return (
        f"{type(model).__name__} has no {recipe.attention.backend} attention in transformers: "
        f"{runs} runs instead",
    )
