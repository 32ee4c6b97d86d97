"""A window for models that were made without one: which can have it, and what their numbers are then."""

from __future__ import annotations

from dataclasses import replace

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.kv_cache.cost import span
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Recipe

WINDOWED_TYPES = frozenset({"gpt2", "gpt_bigcode", "gpt_neox", "gptj", "llama", "olmo2", "opt", "qwen3"})
"""Model types whose masks all come from transformers' ``create_causal_mask``, where a window can be added."""


def window_of(recipe: Recipe, architecture: Architecture) -> int | None:
    """The window that a recipe gives to all layers of a model; ``None`` where the model stays as it is.

    Raises:
        RecipeError: where the model has a window of its own and the recipe gives one too, where neither has
            one, or where the model's masks cannot be given any.
    """
    if recipe.kv_cache.kind != "sliding":
        return None
    window, name = recipe.kv_cache.window, recipe.model.name

    def refused(key: str, reason: str) -> RecipeError:
        return RecipeError(f"kv_cache.{key}: {reason}", position_of(("kv_cache", key), recipe.text))

    own = sorted({width for layer in architecture.layers if (width := span(layer.attention))})
    if own:
        if window is None:
            return None
        widths = " and ".join(f"{width:,}" for width in own)
        raise refused("window", f"{name} has a window of its own, {widths} tokens: leave it out")
    if window is None:
        raise refused("kind", f"{name} has no window of its own: write kv_cache.window, the tokens to keep")
    if architecture.model_type not in WINDOWED_TYPES:
        raise refused(
            "kind",
            f"{name} cannot be given a window, because memgpt does not know where the masks of a "
            f"{architecture.model_type} are made: choose dynamic",
        )
    return window


def refuse_quantized_windows(recipe: Recipe, architecture: Architecture) -> None:
    """Raise ``RecipeError`` for a quantized cache of a model that has windows."""
    if recipe.kv_cache.kind == "quantized" and any(span(layer.attention) for layer in architecture.layers):
        raise RecipeError(
            f"kv_cache.kind: {recipe.model.name} has layers with a window, which transformers' quantized "
            "cache cannot hold: choose dynamic",
            position_of(("kv_cache", "kind"), recipe.text),
        )


def windowed(architecture: Architecture, recipe: Recipe) -> Architecture:
    """The model's numbers with the recipe's window in every layer.

    Raises:
        RecipeError: as ``window_of``, and for a quantized cache of a model that has windows.
    """
    refuse_quantized_windows(recipe, architecture)
    window = window_of(recipe, architecture)
    if window is None:
        return architecture
    layers = tuple(
        replace(layer, attention=replace(layer.attention, window=window)) for layer in architecture.layers
    )
    return replace(architecture, layers=layers)
