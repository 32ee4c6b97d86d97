"""Which token comes next: transformers' own warpers, and a generator of random numbers for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mem_gpt_cli.recipe.schema import Sampling
from mem_gpt_cli.workload.inference import Pick, likeliest


def picker(sampling: Sampling, seeds: Sequence[int], lengths: Sequence[int]) -> Pick:
    """How the rows of a batch pick their tokens.

    Args:
        sampling: temperature and the limits on the choice.
        seeds: one a row, so that a prompt gets the same answer in whatever company.
        lengths: tokens of each row's prompt; what stands before them is padding.
    """
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        return likeliest
    return _Sampler(sampling, seeds, lengths)


def one_by_one(
    sampling: Sampling, seeds: Sequence[int]
) -> Callable[[int, torch.Tensor, Sequence[int]], int] | None:
    """The same for requests in any order: from number, logits, ``[1, vocabulary]``, and all tokens so far.

    ``None`` takes the likeliest.
    """
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        return None
    sampler = _Sampler(sampling, seeds, [0] * len(seeds))

    def pick(number: int, logits: torch.Tensor, said: Sequence[int]) -> int:
        return sampler.pick(number, logits, torch.tensor([list(said)]))

    return pick


class _Sampler:
    """Samples row by row, on the CPU, so that the random numbers are the same on every device."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], lengths: Sequence[int]) -> None:
        self._greedy = sampling.temperature == 0
        self._warpers = _warpers(sampling)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._padding = [max(lengths) - length for length in lengths]

    def __call__(self, logits: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
        picked = [
            self.pick(row, logits[row : row + 1], sequence[row : row + 1, self._padding[row] :])
            for row in range(len(self._generators))
        ]
        return torch.tensor(picked, device=logits.device).unsqueeze(1)

    def pick(self, row: int, logits: torch.Tensor, said: torch.Tensor) -> int:
        """The token of one row, from its logits, ``[1, vocabulary]``, and its tokens, ``[1, length]``."""
        scores = self._warpers(said.cpu(), logits.float().cpu())
        if self._greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generators[row]))


def _warpers(sampling: Sampling) -> Any:
    found: list[Any] = []
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.temperature not in (0, 1):
        found.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k is not None:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        found.append(TopPLogitsWarper(float(sampling.top_p)))
    return LogitsProcessorList(found)
