"""Masks with a window for models whose code knows of none.

transformers makes every mask by a function registered for the attention's name, and gives it the model's
config. The functions for ``eager`` and ``sdpa`` are registered anew, with this difference alone: where the
config carries ``WINDOW``, the mask is the one that transformers makes for a model with such a window.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.kv_cache.window import refuse_quantized_windows, window_of
from mem_gpt_cli.model import ModelSource
from mem_gpt_cli.recipe.schema import Recipe

WINDOW = "memgpt_window"
"""The config's attribute; ``sliding_window`` is set as well, for the caches that transformers makes of it."""


def give_window(model: torch.nn.Module, source: ModelSource, recipe: Recipe) -> None:
    """Let every layer see ``kv_cache.window`` tokens; does nothing where the recipe asks for none.

    Raises:
        RecipeError: where this model cannot have it, or has windows that its quantized cache cannot hold.
    """
    if recipe.kv_cache.kind == "quantized":
        with suppress(UnsupportedError):  # then transformers says it, at the first pass
            refuse_quantized_windows(recipe, source.architecture)
    window = window_of(recipe, source.architecture) if recipe.kv_cache.kind == "sliding" else None
    if window is None:
        return
    _register()
    config: Any = model.config
    setattr(config, WINDOW, window)
    config.sliding_window = window


@cache
def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    for name in ("eager", "sdpa"):
        AttentionMaskInterface.register(name, _windowed(ALL_MASK_ATTENTION_FUNCTIONS[name]))


def _windowed(make_mask: Callable[..., torch.Tensor | None]) -> Callable[..., torch.Tensor | None]:
    from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay

    def made(*args: Any, config: Any = None, **options: Any) -> torch.Tensor | None:
        window = getattr(config, WINDOW, None)
        if window is not None:
            whole = options.get("mask_function", causal_mask_function)
            options["mask_function"] = and_masks(sliding_window_overlay(window), whole)
            options["local_size"] = window
        return make_mask(*args, config=config, **options)

    return made
