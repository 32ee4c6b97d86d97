"""Texts as prompts: what can be known of them before the model is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.changing import for_prompts
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.generation import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Reading:
    """A model's tokenizer under a recipe; ``tokenizer`` is ``None`` where only a config is at hand."""

    recipe: Recipe
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase | None

    @classmethod
    def of(cls, recipe: Recipe) -> Reading:
        """The reading of a recipe's model.

        Raises:
            UsageError: for a model that cannot be found.
            RecipeError: for options that cannot stand together, whatever the prompts.
            EnvironmentUnavailableError: for a tokenizer that cannot be read.
        """
        refuse_whatever_is_asked(recipe)
        source = source_of(recipe)
        return cls(recipe, source, load_tokenizer(source))

    def needed(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            EnvironmentUnavailableError: for a model without one.
        """
        if self.tokenizer is None:
            raise EnvironmentUnavailableError(
                f"{self.source.name} has no tokenizer here, because only its config is at hand: give the "
                "folder of the whole model, or pass token ids to .model.generate"
            )
        return self.tokenizer

    def read(self, texts: Sequence[str], *, chat: bool = False, first: int = 0) -> list[Prompt]:
        """Prompts of texts; see ``TextModel.read``."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UsageError("read takes a list of texts: write read([text])")
        tokenizer = self.needed()
        if chat and not tokenizer.chat_template:
            raise UsageError(f"the tokenizer of {self.source.name} has no chat template: leave --chat out")
        found = []
        for index, text in enumerate(texts, first):
            tokens = tuple(_tokens_of(tokenizer, text, chat))
            if not tokens:
                raise UsageError(f"the prompt of index {index} is empty: write some text")
            seed = (self.recipe.workload.seed + index) % 2**63
            found.append(Prompt(text, tokens, seed, index))
        return found

    def batches(self, prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
        """The prompts that go through the model together: ``workload.batch`` of them; all if it pages."""
        together = len(prompts) if self.recipe.kv_cache.kind == "paged" else self.recipe.workload.batch
        return [prompts[start : start + together] for start in range(0, len(prompts), max(together, 1))]

    def sized(self, prompts: Sequence[Prompt]) -> list[Recipe]:
        """The recipe of each batch, with the lengths of its prompts.

        Raises:
            RecipeError: where the recipe's options cannot hold a batch.
        """
        new = self.recipe.lengths.new
        found = []
        for batch in self.batches(prompts):
            found.append(for_prompts(self.recipe, [len(prompt.tokens) for prompt in batch], new))
            refuse_unavailable(found[-1], "profile")
        return found


def refuse_whatever_is_asked(recipe: Recipe) -> None:
    """Pass a recipe that can serve some prompt: the lengths of its workload are made up.

    Raises:
        RecipeError: for a value, or values together, that no prompt is short enough for.
    """
    refuse_unavailable(recipe if recipe.task == "training" else for_prompts(recipe, [1], 1), "profile")


def has_tokenizer(source: ModelSource) -> bool:
    """Whether a tokenizer lies beside the model."""
    folder = source.folder
    return source.gguf_file is not None or (
        folder is not None and any((folder / name).is_file() for name in _TOKENIZER_FILES)
    )


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside a model's weights; ``None`` where there is none.

    Raises:
        EnvironmentUnavailableError: for a tokenizer that cannot be read.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(source):
        return None
    location = {"pretrained_model_name_or_path": str(source.folder)}
    if source.gguf_file is not None:
        location["gguf_file"] = source.gguf_file.name
    try:
        return AutoTokenizer.from_pretrained(**location, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise EnvironmentUnavailableError(
            f"the tokenizer of {source.name} cannot be read ({str(error).splitlines()[0]}): "
            "fetch the model again"
        ) from error


def _tokens_of(tokenizer: PreTrainedTokenizerBase, text: str, chat: bool) -> list[int]:
    if chat:
        messages = [{"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return list(tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"])
