"""Documents as tokens, each with whether it is learnt."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, MutableSequence, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError
from mem_gpt_cli.finetune.documents import ASSISTANT, Chat, Completion, Document, Message, Text
from mem_gpt_cli.finetune.pieces import tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """The tokens of a document and which of them are learnt, 1 or 0; both of one length."""

    ids: MutableSequence[int]
    learnt: MutableSequence[int]


class Piece(NamedTuple):
    """A stretch of a rendered document."""

    text: str
    learnt: bool


def encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """The tokens of a document, with the token that ends a text at its end.

    A text is learnt whole. Of a completion the prompt is not learnt, of a chat nothing but what the assistant
    says and what ends its turns; a token that straddles the border is learnt.

    Raises:
        UsageError: for a chat that the tokenizer's template refuses, or does not build up turn by turn.
        EnvironmentUnavailableError: for a tokenizer that does not say which characters a token stands for.
    """
    if isinstance(document, Text):
        ids = tokens_of(document.text, tokenizer)
        return _ended(Encoded(ids, bytearray(b"\1") * len(ids)), tokenizer, learnt=True)
    if isinstance(document, Completion):
        pieces = [Piece(document.prompt, False), Piece(document.completion, True)]
        return _ended(_encoded(pieces, tokenizer, special=True), tokenizer, learnt=True)
    if not tokenizer.chat_template:
        pieces = list(_plainly(document.messages))
        return _ended(_encoded(pieces, tokenizer, special=True), tokenizer, learnt=pieces[-1].learnt)
    pieces = list(_by_template(document, tokenizer))
    return _ended(_encoded(pieces, tokenizer, special=False), tokenizer, learnt=pieces[-1].learnt)


def _ended(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, *, learnt: bool) -> Encoded:
    """With the end of text, unless it is there already, maybe with a line break behind it."""
    end = tokenizer.eos_token_id
    if end is not None and end not in encoded.ids[-2:]:
        encoded.ids.append(int(end))
        encoded.learnt.append(learnt)
    return encoded


def _encoded(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase, *, special: bool) -> Encoded:
    """The tokens of the whole text, as the model would meet it, and those of them that reach into what is
    learnt."""
    if not tokenizer.is_fast:
        raise EnvironmentUnavailableError(
            "prompts cannot be told from completions, because the tokenizer does not say which characters a "
            "token stands for: use one with a tokenizer.json, or data of plain texts"
        )
    text = "".join(piece.text for piece in pieces)
    found: Any = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    spans = list(_learnt_spans(pieces))
    learnt = bytearray(
        any(start < end and start < last and end > first for first, last in spans)
        for start, end in found["offset_mapping"]
    )
    return Encoded(array("i", found["input_ids"]), learnt)


def _learnt_spans(pieces: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    at = 0
    for piece in pieces:
        if piece.learnt:
            yield at, at + len(piece.text)
        at += len(piece.text)


def _plainly(messages: Sequence[Message]) -> Iterator[Piece]:
    """The template of a tokenizer that has none: ``user: Hello`` and a line break, turn after turn."""
    for message in messages:
        yield Piece(f"{message.role}:", False)
        yield Piece(f" {message.content}\n", message.role == ASSISTANT)


def _by_template(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    """The turns as the tokenizer's template renders them: each is what it adds to the text before it."""
    edges = [""]
    for count, message in enumerate(chat.messages, 1):
        if message.role == ASSISTANT:
            edges.append(_rendered(chat, count - 1, tokenizer, asks=True))
            edges.append(_rendered(chat, count, tokenizer))
        else:
            edges.extend([_rendered(chat, count, tokenizer)] * 2)
    turns = [message.role == ASSISTANT for message in chat.messages]
    for number, (before, after) in enumerate(pairwise(edges)):
        if not after.startswith(before):
            raise UsageError(
                f"{chat.where}: the tokenizer's chat template does not add turn {number // 2 + 1} to the "
                "text before it, so that what is learnt cannot be told: write prompt and completion instead"
            )
        yield Piece(after[len(before) :], number % 2 == 1 and turns[number // 2])


def _rendered(chat: Chat, count: int, tokenizer: PreTrainedTokenizerBase, *, asks: bool = False) -> str:
    """The first ``count`` turns as text; ``asks`` adds what the assistant's turn begins with."""
    messages = [message._asdict() for message in chat.messages[:count]]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))
    except Exception as error:  # templates raise whatever their authors chose
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{chat.where}: the tokenizer's chat template refuses the chat: {why}") from error
