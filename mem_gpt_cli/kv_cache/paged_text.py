"""A text model that generates from pages, where its model can."""

from __future__ import annotations

import sys
from typing import Any, Protocol, TypeVar

import torch

from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.kv_cache.paged import why_not


class TextModel(Protocol):
    """What is asked of a text model here: its torch model, and itself with other options."""

    @property
    def model(self) -> torch.nn.Module:
        """The torch model."""
        ...

    def with_options(self, **sections: dict[str, Any]) -> Any:
        """The same model under a recipe with other values; raises ``RecipeError`` where they cannot stand."""
        ...


Model = TypeVar("Model", bound=TextModel)


def use_paged_kv_cache_if_available(model: Model) -> Model:
    """The same model with its keys and values on pages; where that cannot be, itself, and why on stderr."""
    reason = why_not(model.model)
    if reason is None:
        try:
            paged: Model = model.with_options(kv_cache={"kind": "paged"})
        except MemgptError as error:
            reason = str(error)
        else:
            return paged
    print(f"memgpt: no paged KV cache: {reason}", file=sys.stderr)
    return model
