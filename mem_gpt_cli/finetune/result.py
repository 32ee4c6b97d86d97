"""What a run leaves: adapters or a model as a folder, as they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mem_gpt_cli.finetune.checkpoints import take_away
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.whole_folder import whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def save_result(
    model: torch.nn.Module, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, out: Path
) -> Path:
    """Write the adapters in peft's format, or the whole model in transformers', with its tokenizer.

    Args:
        model: the trained model.
        recipe: how it was built.
        tokenizer: what it reads by.
        out: the folder of the run; an earlier result in it is replaced.

    Returns:
        The folder that was written: ``out/adapter`` or ``out/model``.

    Raises:
        UsageError: where it cannot be written.
    """
    if recipe.adapters.kind != "none":
        from mem_gpt_cli.adapters.saved import save_adapters

        folder = out / "adapter"
        take_away(folder)
        save_adapters(model, recipe, folder)
        return folder
    folder = out / "model"
    take_away(folder)
    whole: Any = model
    with whole_folder(folder) as partial:
        whole.save_pretrained(str(partial))
        tokenizer.save_pretrained(str(partial))
    return folder
