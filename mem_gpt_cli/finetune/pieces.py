"""A long text as tokens, piece by piece: a tokenizer's account of a whole one takes fifty times its size.

A piece begins where the piece before it has a border between two words, as the tokenizer's own pre-tokenizer
splits them; tokens never reach over such a border. Pieces overlap, and must agree about the overlap to the
token. So the tokens are those of the whole text for every tokenizer whose words hang on no more than
``REACH`` characters before and behind them: what lies nearer is compared. Where two pieces do not agree, or
the tokenizer knows no words (SentencePiece models that take a text for one word), the text goes in one go.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 65_536
"""Characters of a piece."""
REACH = 1_024
"""Characters that a border between words may hang on, to either side."""


def tokens_of(text: str, tokenizer: PreTrainedTokenizerBase, window: int = WINDOW) -> array[int]:
    """The tokens of a text, with those that the tokenizer puts around it.

    Args:
        text: the whole text.
        tokenizer: the tokenizer.
        window: characters of a piece; more than four times ``REACH``.
    """
    if len(text) > window and tokenizer.is_fast:
        found = _in_pieces(text, tokenizer, window)
        around = _around(tokenizer)
        if found is not None and around is not None:
            return array("i", around[0]) + found + array("i", around[1])
    return array("i", _ids(tokenizer, text))


def _in_pieces(text: str, tokenizer: PreTrainedTokenizerBase, window: int) -> array[int] | None:
    """The tokens without those around them; ``None`` where pieces would not do."""
    found, agreed, start = array("i"), array("i"), 0
    while True:
        told: Any = tokenizer(text[start : start + window], add_special_tokens=False, verbose=False)
        encoding = told.encodings[0]
        ids = array("i", encoding.ids)
        if ids[: len(agreed)] != agreed:
            return None
        if start + window >= len(text):
            return found + ids
        offsets = encoding.offsets
        border = _border(encoding.word_ids, offsets, window - 2 * REACH)
        if border is None:
            return None
        found += ids[:border]
        last = next(n for n in range(len(ids) - 1, -1, -1) if offsets[n][1] <= window - REACH)
        agreed = ids[border : last + 1]
        start += offsets[border][0]


def _border(words: Sequence[int | None], offsets: Sequence[tuple[int, int]], latest: int) -> int | None:
    """The last token that begins a word right where the one before it ends, at ``latest`` or before it, but
    not in the first half; ``None`` where there is none."""
    for token in range(len(words) - 1, 0, -1):
        begins = offsets[token][0]
        if begins < latest // 2:
            return None
        if begins <= latest and words[token] != words[token - 1] and offsets[token - 1][1] == begins:
            return token
    return None


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]] | None:
    """The tokens before and behind every text; ``None`` where they cannot be told."""
    bare, dressed = _ids(tokenizer, "a", add_special_tokens=False), _ids(tokenizer, "a")
    for at in range(len(dressed) - len(bare) + 1):
        if bare and dressed[at : at + len(bare)] == bare:
            return dressed[:at], dressed[at + len(bare) :]
    return None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> list[int]:
    return list(tokenizer(text, return_attention_mask=False, verbose=False, **options)["input_ids"])
