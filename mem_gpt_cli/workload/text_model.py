"""A model with its tokenizer: text in, text out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.build import build

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class TextModel:
    """A torch model ready to generate; ``tokenizer`` is ``None`` where only a config is at hand."""

    name: str
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    use_cache: bool = True

    def generate(self, prompt: str, *, new_tokens: int = 32, **options: Any) -> str:
        """The prompt and its continuation, greedy unless ``options`` of transformers' ``generate`` say more.

        Raises:
            EnvironmentUnavailableError: for a model without a tokenizer.
        """
        if self.tokenizer is None:
            raise EnvironmentUnavailableError(
                f"{self.name} has no tokenizer here, because only its config is at hand: give the folder of "
                "the whole model, or pass token ids to .model.generate"
            )
        generate: Any = self.model.generate
        inputs = self.tokenizer(prompt, return_tensors="pt")
        device = next(self.model.parameters()).device
        end = self.tokenizer.pad_token_id
        tokens = generate(
            input_ids=inputs["input_ids"].to(device),
            attention_mask=inputs["attention_mask"].to(device),
            **{
                "max_new_tokens": new_tokens,
                "do_sample": False,
                "use_cache": self.use_cache,
                "pad_token_id": self.tokenizer.eos_token_id if end is None else end,
                **options,
            },
        )
        return str(self.tokenizer.decode(tokens[0], skip_special_tokens=True))


def load(recipe: Recipe, device: torch.device | None = None) -> TextModel:
    """The model of a recipe with its weights and options, and its tokenizer where there is one.

    Raises:
        UsageError: for a model that cannot be found.
        RecipeError: for an option that no model can be built with yet.
        EnvironmentUnavailableError: for weights that cannot be read.
    """
    refuse_unavailable(recipe, "profile")
    source = source_of(recipe)
    torch.manual_seed(recipe.workload.seed)
    model = build(source, recipe, device).eval()
    return TextModel(source.name, model, load_tokenizer(source), recipe.kv_cache.kind != "none")


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside a model's weights; ``None`` where there is none.

    Raises:
        EnvironmentUnavailableError: for a tokenizer that cannot be read.
    """
    from transformers import AutoTokenizer

    if source.gguf_file is not None:
        location = {
            "pretrained_model_name_or_path": str(source.gguf_file.parent),
            "gguf_file": source.gguf_file.name,
        }
    elif source.folder is not None and any((source.folder / name).is_file() for name in _TOKENIZER_FILES):
        location = {"pretrained_model_name_or_path": str(source.folder)}
    else:
        return None
    try:
        return AutoTokenizer.from_pretrained(**location, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise EnvironmentUnavailableError(
            f"the tokenizer of {source.name} cannot be read ({str(error).splitlines()[0]}): "
            "fetch the model again"
        ) from error
