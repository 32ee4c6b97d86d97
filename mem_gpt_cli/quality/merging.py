"""A model with its adapters merged, as a folder, and what the merging did to its logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mem_gpt_cli.adapters.base import check_base, over_other_weights
from mem_gpt_cli.adapters.folder import SavedAdapter, read_adapter
from mem_gpt_cli.adapters.merge import merge_adapters
from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.model.facts import vocabulary
from mem_gpt_cli.model.positions import learned_positions
from mem_gpt_cli.quality.scores import shelf
from mem_gpt_cli.quality.shift import Logits, Shift
from mem_gpt_cli.quality.text import check_text, read_text, windows_of
from mem_gpt_cli.quantization.saved import as_saved
from mem_gpt_cli.recipe.changing import changed
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Quality, Recipe
from mem_gpt_cli.report.whole_folder import refuse_taken, whole_folder
from mem_gpt_cli.workload.save import refuse_random, write_model
from mem_gpt_cli.workload.text_model import TextModel, load
from mem_gpt_cli.workload.threads import intra_op_threads

RANDOM_TOKENS = "random tokens"
"""What stands for a text where the model has no tokenizer."""


@dataclass(frozen=True)
class Merged:
    """A merged model in ``folder``: how many ``matrices`` were changed, how they are stored.

    ``quantization`` is ``None`` for weights in full, ``text`` what the shift was measured on; ``notes`` say
    what a reader should know of it.
    """

    model: str
    folder: Path
    adapters: tuple[str, ...]
    matrices: int
    dtype: str
    quantization: str | None
    weights_bytes: int
    text: str
    shift: Shift
    notes: tuple[str, ...]


def merge(recipe: Recipe, adapters: Sequence[str], folder: Path) -> Merged:
    """Merge adapters into the model of a recipe, write it, and measure what that did to its logits.

    Before the merging the adapters are on the model as ``adapters.load`` puts them there. The recipe's
    ``quality`` section says on which text, of how many windows, the two are compared.

    Args:
        recipe: which model, and how its weights are stored.
        adapters: folders of the adapters; all of them are merged.
        folder: where to; nothing may be there, or an empty folder.

    Raises:
        UsageError: for an adapter of another model, a folder that is taken, or a text that is too short.
        EnvironmentUnavailableError: for a model whose weights are not at hand.
        RecipeError: for a recipe of a training, or with adapters of its own; as ``load``.
        UnsupportedError: as ``load``.
    """
    _refuse_more_than_a_base(recipe)
    refuse_taken(folder)
    source = source_of(recipe)
    refuse_random(source, recipe)
    asked = recipe.quality or Quality()
    check_text(asked.text)
    saved = [read_adapter(path) for path in adapters]
    for adapter in saved:
        check_base(adapter, source)
    recipe = as_saved(recipe, source)
    loaded = load(changed(recipe, {"adapters": {"load": list(adapters)}}))
    windows, text = _windows(loaded, asked)
    with whole_folder(folder) as partial, shelf() as kept, intra_op_threads(recipe.device.threads):
        logits = Logits(loaded.recipe, windows, kept)
        logits.keep(loaded.model)
        matrices = merge_adapters(loaded.model)
        shift = logits.shift(loaded.model)
        write_model(replace(loaded, recipe=recipe), partial)
        nbytes = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
    scheme = _scheme(recipe)
    return Merged(
        model=loaded.name,
        folder=folder,
        adapters=tuple(str(adapter.folder) for adapter in saved),
        matrices=matrices,
        dtype=recipe.model.dtype,
        quantization=scheme,
        weights_bytes=nbytes,
        text=text,
        shift=shift,
        notes=tuple(_notes(saved, recipe)),
    )


def _refuse_more_than_a_base(recipe: Recipe) -> None:
    """Pass a recipe of the base alone: what is merged is named beside it, and nothing is trained."""
    into = "--quantization nf4 merges into quantized weights"
    if recipe.task == "training":
        raise _refused(recipe, "task", f"merging trains nothing: give --model in place of a recipe; {into}")
    if recipe.adapters.load:
        raise _refused(recipe, "adapters.load", "what is merged is named by --adapter: leave it out")
    if recipe.adapters.kind != "none":
        raise _refused(recipe, "adapters.kind", f"merging trains nothing: leave the section out; {into}")


def _refused(recipe: Recipe, key: str, reason: str) -> RecipeError:
    return RecipeError(f"{key}: {reason}", position_of(tuple(key.split(".")), recipe.text))


def _windows(loaded: TextModel, asked: Quality) -> tuple[torch.Tensor, str]:
    """The tokens, ``[windows, tokens]``, and the name of the text that they are from."""
    positions = learned_positions(loaded.source, loaded.model)
    tokens = min(asked.tokens, positions or asked.tokens)
    if loaded.tokenizer is None:
        generator = torch.Generator().manual_seed(loaded.recipe.workload.seed)
        shape = (asked.windows, tokens)
        return torch.randint(vocabulary(loaded.model), shape, generator=generator), RANDOM_TOKENS
    tokenizer: Any = loaded.tokenizer
    found = windows_of(
        read_text(asked.text),
        asked.windows,
        tokens,
        lambda text: tokenizer(text, verbose=False)["input_ids"],
    )
    return torch.tensor(found), asked.text


def _scheme(recipe: Recipe) -> str | None:
    section = recipe.quantization
    if section.scheme != "none":
        return section.scheme
    return "mixed" if section.overrides else None


def _notes(saved: Iterable[SavedAdapter], recipe: Recipe) -> Iterator[str]:
    """Where an adapter was trained over weights that were stored otherwise than those it is merged into."""
    for note in over_other_weights(saved, recipe):
        yield f"{note}; these are further apart than the shift says, which is that of the merging alone"
