"""Text for prompts: the recipe's inference over tokens of its own, one row a prompt, until a text ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from transformers import TextStreamer

from mem_gpt_cli.recipe import refuse_unavailable
from mem_gpt_cli.recipe.changing import for_prompts
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.workload.inference import Inference
from mem_gpt_cli.workload.observer import Unobserved
from mem_gpt_cli.workload.sampling import picker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length"]
OnText = Callable[["Prompt", str], None]
"""Told each piece of a prompt's new text as soon as it is settled."""


@dataclass(frozen=True)
class Prompt:
    """A text to go on from, as the model reads it; ``seed`` is its own, in whatever company it runs."""

    text: str
    tokens: tuple[int, ...]
    seed: int
    index: int = 0


@dataclass(frozen=True)
class Completion:
    """What a model made of a prompt.

    ``tokens`` are the new ones, the one that ended the text among them; ``text`` is theirs. ``seconds`` run
    from the batch's start to the last of them.
    """

    prompt: Prompt
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """New tokens of this prompt a second."""
        return len(self.tokens) / self.seconds


class Row:
    """One prompt under way: takes token after token until its text ends or is long enough."""

    def __init__(
        self,
        prompt: Prompt,
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        on_text: OnText | None,
    ) -> None:
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._ends = ends
        self._stream = _Stream(tokenizer, lambda piece: on_text(prompt, piece)) if on_text else None
        self._tokens: list[int] = []
        self._begun = time.perf_counter()

    def take(self, token: int, limit: int) -> Completion | None:
        """One more token; the completion if it was the last."""
        self._tokens.append(token)
        if self._stream is not None:
            self._stream.put(torch.tensor([token]))
        ended = token in self._ends
        if not ended and len(self._tokens) < limit:
            return None
        if self._stream is not None:
            self._stream.end()
        seconds = time.perf_counter() - self._begun
        return Completion(self._prompt, self._text(), tuple(self._tokens), _reason(ended), seconds)

    def _text(self) -> str:
        """The new text; decoded with the prompt before it, because some tokenizers drop a leading space."""
        tokens = [*self._prompt.tokens, *self._tokens]
        before = decode(self._tokenizer, self._prompt.tokens)
        whole = decode(self._tokenizer, tokens)
        return whole[len(before) :] if whole.startswith(before) else decode(self._tokenizer, self._tokens)


def _reason(ended: bool) -> FinishReason:
    return "stop" if ended else "length"


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of tokens, without those that only mark an end."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


class _Stream(TextStreamer):  # type: ignore[misc]
    """transformers' streamer, which holds back what the next token may still change."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tell: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._tell = tell

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        """Pass on what is settled."""
        if text:
            self._tell(text)


def complete_together(
    model: torch.nn.Module,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    padding: int,
) -> Iterator[Completion]:
    """Generate for one batch, shorter prompts padded on the left; yields each row's text when it is over.

    Raises:
        RecipeError: where the recipe's options cannot hold these prompts.
    """
    sized = for_prompts(recipe, [len(prompt.tokens) for prompt in prompts], recipe.lengths.new)
    refuse_unavailable(sized, "profile")
    lengths = sized.prompts
    seeds = [prompt.seed for prompt in prompts]
    workload = Inference(sized, picker(recipe.sampling, seeds, lengths))
    workload.prepare(model, Unobserved())
    tokens = torch.tensor(
        [[padding] * (max(lengths) - len(prompt.tokens)) + list(prompt.tokens) for prompt in prompts],
        device=_device(model),
    )
    going = dict(enumerate(rows))
    state = workload.prefill(model, tokens, Unobserved())
    while True:
        picked = state.sequence[:, -1].tolist()
        for number, row in list(going.items()):
            completion = row.take(picked[number], sized.lengths.new)
            if completion is not None:
                del going[number]
                yield completion
        if not going:
            return
        state = workload.decode(model, state, Unobserved())


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
