"""The model of a recipe as a folder: with the key-value heads and the weights that its options made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError
from mem_gpt_cli.quantization.saved import save_quantized
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.text_model import TextModel, load


def save(recipe: Recipe, folder: Path) -> TextModel:
    """Write the model with its tokenizer; as ``model.name`` the folder is that model again.

    Without quantization it is a model in transformers' own format, which ``from_pretrained`` loads.

    Args:
        recipe: which model, and the options that change its weights.
        folder: where to; it is made, and must not hold a model yet.

    Raises:
        UsageError: where the folder cannot be written or holds a model.
        EnvironmentUnavailableError: for a model whose weights are not at hand.
        RecipeError, UnsupportedError: as ``load``.
    """
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model already: name another folder")
    loaded = load(recipe)
    model: Any = loaded.model
    if not loaded.source.weights_are_local or recipe.model.weights == "random":
        raise EnvironmentUnavailableError(
            f"the weights of {loaded.name} are not at hand, and random ones are not worth a file: "
            "name a folder with the whole model"
        )
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
    return loaded
