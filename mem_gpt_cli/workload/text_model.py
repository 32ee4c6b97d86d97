"""A model with its tokenizer: text in, text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mem_gpt_cli.attention.backend import check_attention, implementation
from mem_gpt_cli.errors import UnsupportedError, UsageError
from mem_gpt_cli.model.positions import learned_positions
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.quantization.saved import as_saved, save_quantized
from mem_gpt_cli.recipe.changing import changed
from mem_gpt_cli.recipe.schema import Recipe, Sampling
from mem_gpt_cli.workload.build import build
from mem_gpt_cli.workload.generation import Completion, OnText, Prompt, Row, complete_together, decode
from mem_gpt_cli.workload.paged_generation import complete_paged
from mem_gpt_cli.workload.reading import Reading, refuse_whatever_is_asked
from mem_gpt_cli.workload.threads import intra_op_threads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADJUSTABLE = ("attention", "kv_cache", "sampling", "workload")
"""Sections of the recipe that a torch model is not built by."""


@dataclass(frozen=True)
class TextModel:
    """A torch model with a recipe's options, ready to generate.

    ``tokenizer`` is ``None`` where only a config is at hand. ``attention`` is transformers' name of what
    computes it: several text models may share one torch model.
    """

    recipe: Recipe
    source: ModelSource
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    attention: str

    @property
    def name(self) -> str:
        """The model's name."""
        return self.source.name

    def generate(self, prompt: str, *, new_tokens: int | None = None, **options: Any) -> str:
        """The prompt and its continuation, as the recipe says it.

        Args:
            prompt: what to go on from.
            new_tokens: at most so many; the recipe's own number by default.
            options: keys of the recipe's ``sampling`` section, and ``seed``.

        Raises:
            EnvironmentUnavailableError: for a model without a tokenizer.
            UsageError: for what is no text, an empty prompt, one beyond the model's positions, or an unknown
                option.
        """
        if not isinstance(prompt, str):
            raise UsageError(
                f"generate goes on from one text, not {type(prompt).__name__}: for several, take "
                "complete(read([...]))"
            )
        asked = self._asked(new_tokens, options)
        (completion,) = asked.complete(asked.read([prompt]))
        return decode(asked._reader(), completion.prompt.tokens) + completion.text

    def read(self, texts: Sequence[str], *, chat: bool = False, first: int = 0) -> list[Prompt]:
        """Prompts of texts; each has the recipe's seed plus its index, which counts from ``first``.

        Args:
            texts: what a user wrote.
            chat: each is a user's message, to be put into the tokenizer's chat template.
            first: the index of the first of them.

        Raises:
            EnvironmentUnavailableError: for a model without a tokenizer.
            UsageError: for a text without tokens, one too long for the model, or no chat template.
        """
        prompts = self._reading().read(texts, chat=chat, first=first)
        self.check_positions(prompts)
        return prompts

    def batches(self, prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
        """The prompts that go through the model together: ``workload.batch`` of them; all if it pages."""
        return self._reading().batches(prompts)

    def complete(self, prompts: Sequence[Prompt], on_text: OnText | None = None) -> Iterator[Completion]:
        """Go on from prompts, batch after batch; yields each completion as soon as its text is over.

        Raises:
            RecipeError: where the recipe's options cannot hold these prompts.
        """
        tokenizer, ends = self._reader(), self._ends()
        self._attend()
        for batch in self.batches(prompts):
            with intra_op_threads(self.recipe.device.threads):
                rows = [Row(prompt, tokenizer, ends, on_text) for prompt in batch]
                if self.recipe.kv_cache.kind == "paged":
                    yield from complete_paged(self.model, self.recipe, batch, rows, ends)
                else:
                    yield from complete_together(self.model, self.recipe, batch, rows, self._padding())

    def save(self, folder: str | Path) -> None:
        """Write the model with its tokenizer: the folder, as ``model.name``, is it again, to the bit.

        Quantized weights are written as they are stored, see ``quantization.saved.save_quantized``.

        Raises:
            UsageError: where the folder cannot be written or holds a model already, or with adapters.
        """
        refuse_adapters(self.recipe)
        save_quantized(self.model, Path(folder), self.source, self.recipe)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder))

    def with_options(self, **sections: dict[str, Any]) -> TextModel:
        """The same torch model under a recipe with other values: ``with_options(kv_cache={"kind": "none"})``.

        Raises:
            UsageError: for a section that the torch model was built by.
            RecipeError: for a value that it does not know, or values that cannot stand together.
            UnsupportedError: for an attention that the model has not.
        """
        for section in sections:
            if section not in ADJUSTABLE:
                raise UsageError(
                    f"{section}: {self.name} is built already: load it again to change more than "
                    f"{', '.join(ADJUSTABLE)}"
                )
        recipe = changed(self.recipe, sections)
        refuse_whatever_is_asked(recipe)
        if recipe.attention == self.recipe.attention:
            return dataclasses.replace(self, recipe=recipe)
        return dataclasses.replace(self, recipe=recipe, attention=self._attention_of(recipe))

    def _attention_of(self, recipe: Recipe) -> str:
        """transformers' name of the recipe's attention, if the torch model can run it."""
        if recipe.attention.kv_heads != self.recipe.attention.kv_heads:
            raise UsageError("attention.kv_heads changes the weights: load the model again")
        check_attention(self.model, recipe)
        wanted = implementation(recipe, next(self.model.parameters()).device)
        try:
            self.model.set_attn_implementation(wanted)  # type: ignore[operator]
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UnsupportedError(f"{self.name} cannot run {recipe.attention.backend}: {reason}") from error
        return wanted

    def _asked(self, new_tokens: int | None, options: dict[str, Any]) -> TextModel:
        seed = options.pop("seed", self.recipe.workload.seed)
        unknown = sorted(set(options) - set(Sampling.model_fields))
        if unknown:
            known = ", ".join((*Sampling.model_fields, "seed"))
            raise UsageError(f"generate knows no option {unknown[0]!r}: choose from {known}")
        workload: dict[str, Any] = {"seed": seed}
        if new_tokens is not None:
            workload |= {"new_tokens": new_tokens, "seq": None}
        return self.with_options(workload=workload, sampling=options)

    def check_positions(self, prompts: Sequence[Prompt]) -> None:
        """Pass prompts that the model has positions for.

        Raises:
            UsageError: for one that is too long.
        """
        new, positions = self.recipe.lengths.new, learned_positions(self.source, self.model)
        for prompt in prompts:
            length = len(prompt.tokens)
            if positions is not None and length + new - 1 > positions:
                raise UsageError(
                    f"the prompt of index {prompt.index} has {length} tokens, with {new} new ones more than "
                    f"the {positions} positions that {self.name} has learned: shorten it, or ask for less"
                )

    def _reading(self) -> Reading:
        return Reading(self.recipe, self.source, self.tokenizer)

    def _reader(self) -> PreTrainedTokenizerBase:
        return self._reading().needed()

    def _attend(self) -> None:
        """Set the attention of this text model, where another one that shares the torch model changed it."""
        model: Any = self.model
        if model.config._attn_implementation != self.attention:
            model.set_attn_implementation(self.attention)

    def _ends(self) -> frozenset[int]:
        """The tokens that end a text: the tokenizer's, and those that the model's makers name beside it."""
        named: list[Any] = [self._reader().eos_token_id]
        for config in (getattr(self.model, "generation_config", None), _generation_config(self.source)):
            ends = getattr(config, "eos_token_id", None)
            named += ends if isinstance(ends, list) else [ends]
        return frozenset(int(end) for end in named if end is not None)

    def _padding(self) -> int:
        tokenizer = self._reader()
        found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return 0 if found is None else int(found)


def refuse_adapters(recipe: Recipe) -> None:
    """Pass a model whose weights are all its own.

    Raises:
        UsageError: for one with adapters on it.
    """
    if recipe.adapters.kind != "none" or recipe.adapters.load:
        raise UsageError(
            "adapters: a model is saved without them: leave the section out, or run `memgpt adapters merge`"
        )


def _generation_config(source: ModelSource) -> Any:
    from transformers import GenerationConfig

    if source.folder is None or not (source.folder / GENERATION_CONFIG).is_file():
        return None
    return GenerationConfig.from_pretrained(str(source.folder), local_files_only=True)


GENERATION_CONFIG = "generation_config.json"


def load(recipe: Recipe, device: torch.device | None = None, reading: Reading | None = None) -> TextModel:
    """The model of a recipe with its weights and options, and its tokenizer where there is one.

    Args:
        recipe: which model, and how.
        device: where to; the CPU by default.
        reading: the recipe's, where it is there already.

    Raises:
        UsageError: for a model that cannot be found.
        RecipeError: for an option that no model can be built with yet.
        EnvironmentUnavailableError: for weights that cannot be read.
    """
    reading = Reading.of(recipe) if reading is None else reading
    source = reading.source
    recipe = as_saved(recipe, source)
    model: Any = load_model(source, recipe, device)
    return TextModel(recipe, source, model, reading.tokenizer, model.config._attn_implementation)


def load_model(source: ModelSource, recipe: Recipe, device: torch.device | None = None) -> torch.nn.Module:
    """The torch model of a recipe, its weights and options in it, set to inference."""
    torch.manual_seed(recipe.workload.seed)
    return build(source, recipe, device).eval()
