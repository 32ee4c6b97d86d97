"""The model of a recipe as a folder: with the key-value heads and the weights that its options made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.model.weights import wants_real_weights
from mem_gpt_cli.quantization.saved import save_quantized
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.text_model import TextModel, load, refuse_adapters


def save(recipe: Recipe, folder: Path) -> TextModel:
    """Write the model with its tokenizer; as ``model.name`` the folder is that model again.

    Args:
        recipe: which model, and the options that change its weights.
        folder: where to; it is made, and must not hold a model yet.

    Raises:
        UsageError: where the folder cannot be written or holds a model, or for a recipe with adapters.
        EnvironmentUnavailableError: for a model whose weights are not at hand.
        RecipeError, UnsupportedError: as ``load``.
    """
    refuse_adapters(recipe)
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model already: name another folder")
    loaded = load(recipe)
    refuse_random(loaded.source, recipe)
    write_model(loaded, folder)
    return loaded


def refuse_random(source: ModelSource, recipe: Recipe) -> None:
    """Pass a model whose weights are somebody's work.

    Raises:
        EnvironmentUnavailableError: for a model whose weights are not at hand.
    """
    if not wants_real_weights(source, recipe):
        raise EnvironmentUnavailableError(
            f"the weights of {source.name} are not at hand, and random ones are not worth a file: "
            "name a folder with the whole model"
        )


def write_model(loaded: TextModel, folder: Path) -> None:
    """Write a model as it stands, with its tokenizer.

    Without quantization it is a model in transformers' own format, which ``from_pretrained`` loads.

    Raises:
        UsageError: where the folder cannot be written or holds a model, or the recipe puts adapters on it.
    """
    model: Any = loaded.model
    stored = loaded.recipe.quantization  # a folder that was saved quantized stays so
    if stored.scheme == "none" and not stored.overrides:
        try:
            model.save_pretrained(str(folder))
        except OSError as error:
            raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from error
    else:
        save_quantized(model, folder, loaded.source, loaded.recipe)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(str(folder))
