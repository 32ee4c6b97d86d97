"""The data of a fine-tune: what is learnt, what is held out, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mem_gpt_cli.errors import RecipeError, UsageError
from mem_gpt_cli.finetune.documents import Chat, Completion, Document, Text, read_documents
from mem_gpt_cli.finetune.rows import Rows, packed, padded
from mem_gpt_cli.finetune.tokens import encode
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.training import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Data:
    """Rows to learn and rows to evaluate on, ``None`` where there was too little to hold some out."""

    training: Rows
    held_out: Rows | None
    documents: int
    notes: tuple[str, ...] = ()

    def digests(self) -> dict[str, str | None]:
        """What a run that goes on must find the same."""
        held_out = None if self.held_out is None else self.held_out.digest()
        return {"training": self.training.digest(), "held_out": held_out}


def load_data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Data:
    """Read, encode and lay out the data of a recipe.

    Raises:
        RecipeError: where the recipe names no data.
        UsageError: for data that cannot be used, or too little of it.
    """
    asked = recipe.finetune
    documents = read_documents(named_data(recipe), "finetune.data")
    if asked.held_out is not None:
        held_out = read_documents(asked.held_out, "finetune.held_out")
    else:
        documents, held_out = split(documents, asked.held_out_percent)
    training = _rows(documents, recipe, tokenizer)
    if not len(training):
        raise UsageError(
            f"finetune.data: {asked.data} leaves nothing to learn in sequences of {recipe.lengths.seq} "
            "tokens: raise workload.seq, or give more text"
        )
    kept = _rows(held_out, recipe, tokenizer) if held_out else None
    evaluated = _spread(kept, asked.evaluate_tokens // recipe.lengths.seq) if kept and len(kept) else None
    notes = tuple(_notes(training, evaluated))
    return Data(training, evaluated, len(documents), notes)


def named_data(recipe: Recipe) -> str:
    """The data that a recipe names.

    Raises:
        RecipeError: where it names none.
    """
    if recipe.finetune.data is None:
        raise RecipeError(
            "finetune.data: names no data: add --data FILE, or --data sample for the text that ships",
            position_of(("finetune",), recipe.text),
        )
    return recipe.finetune.data


def split(documents: Sequence[Document], percent: float) -> tuple[list[Document], list[Document]]:
    """The documents without the last ``percent`` of their characters, and those: cut between documents, and
    inside of one, at the end of a line, only where it is a text."""
    sizes = [_size(document) for document in documents]
    left = sum(sizes) * (1 - percent / 100)
    for number, (document, size) in enumerate(zip(documents, sizes, strict=True)):
        if size < left:
            left -= size
            continue
        if isinstance(document, Text) and (at := _line_end(document.text, int(left))):
            first = Text(document.text[:at], document.where)
            rest = Text(document.text[at:], f"{document.where} (its end)")
            return [*documents[:number], first], [rest, *documents[number + 1 :]]
        at = min(max(1, number + (left > size / 2)), len(documents) - 1)
        return (list(documents[:at]), list(documents[at:])) if at else (list(documents), [])
    return list(documents), []


def _line_end(text: str, near: int) -> int | None:
    """Where a line, or else a word, ends that ``near`` lies in, if text follows and comes before."""
    for mark in ("\n", " "):
        at = text.find(mark, near) + 1
        if at and text[:at].strip() and text[at:].strip():
            return at
    return None


def _size(document: Document) -> int:
    if isinstance(document, Chat):
        return sum(len(message.content) for message in document.messages)
    if isinstance(document, Completion):
        return len(document.prompt) + len(document.completion)
    return len(document.text)


def _rows(documents: Sequence[Document], recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    encoded = (encode(document, tokenizer) for document in documents)
    found = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    padding = int(next((token for token in found if token is not None), 0))
    lay_out = packed if recipe.finetune.packing else padded
    return lay_out(encoded, recipe.lengths.seq, padding)


def _spread(rows: Rows, count: int) -> Rows:
    """``count`` of the rows, at least one, from all over them."""
    if count >= len(rows):
        return rows
    count = max(1, count)
    chosen = torch.tensor([number * len(rows) // count for number in range(count)])
    return Rows(rows.tokens[chosen], rows.labels[chosen], rows.lengths[chosen])


def _notes(training: Rows, held_out: Rows | None) -> Iterator[str]:
    if training.cut:
        yield (
            f"{training.cut} documents are longer than workload.seq and were cut: raise it to learn them "
            "whole"
        )
    if training.dropped:
        yield f"{training.dropped} sequences hold nothing to learn, prompts alone, and are left out"
    if held_out is None:
        yield "perplexity is not measured: there is too little data to hold some of it out"


def batches(
    rows: Rows, chosen: Sequence[torch.Tensor], per_label: float, recipe: Recipe, device: torch.device
) -> Iterator[Batch]:
    """Rows as they go through the model; each label counts ``per_label`` in the step's loss.

    Padding stands at the end, where no token sees it that counts, so that no mask is needed; but LSH sorts
    all tokens of a row into buckets.
    """
    for numbers in chosen:
        tokens, labels = rows.tokens[numbers], rows.labels[numbers]
        mask: torch.Tensor | None = None
        if recipe.attention.backend == "lsh" and bool((rows.lengths[numbers] < tokens.shape[1]).any()):
            mask = (torch.arange(tokens.shape[1]) < rows.lengths[numbers][:, None]).long().to(device)
        share = rows.learnt(numbers) * per_label
        yield Batch(tokens.long().to(device), labels.long().to(device), mask, share)
