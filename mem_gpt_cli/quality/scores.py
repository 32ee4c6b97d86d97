"""Scores of a model that is led through a text: how likely it finds each next token, and who else does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch


@dataclass
class Scores:
    """Sums over the tokens that were scored, in nats."""

    tokens: int = 0
    loss: float = 0.0
    kl: float = 0.0
    agreed: int = 0
    compared: int = 0

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss."""
        return math.exp(self.loss / self.tokens)

    @property
    def kl_divergence(self) -> float | None:
        """KL(reference, model), the mean over the tokens; ``None`` where nothing was compared."""
        return self.kl / self.compared if self.compared else None

    @property
    def top1_agreement(self) -> float | None:
        """Share of the tokens where both find the same token likeliest."""
        return self.agreed / self.compared if self.compared else None

    def add(self, log_p: torch.Tensor, targets: torch.Tensor) -> None:
        """Count the loss on ``targets``, ``[n]``, under ``log_p``, ``[n, vocabulary]``."""
        self.loss -= float(log_p.gather(1, targets[:, None]).double().sum())
        self.tokens += len(targets)

    def compare(self, log_p: torch.Tensor, reference: torch.Tensor) -> None:
        """Count how far ``log_p`` is from the reference's, both ``[n, vocabulary]``."""
        gap = (reference.exp() * (reference - log_p)).double().nan_to_num(nan=0.0)  # 0 * -inf is nothing
        self.kl += float(gap.sum())
        self.agreed += int((log_p.argmax(1) == reference.argmax(1)).sum())
        self.compared += len(log_p)


class Shelf:
    """The reference's log-probabilities, in fp32 in a file: never two models in memory at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: np.memmap[tuple[int, ...], np.dtype[np.float32]] | None = None

    def put(self, row: int, log_p: torch.Tensor, rows: int) -> None:
        """Keep ``log_p``, ``[n, vocabulary]``, from ``row`` on; there will be ``rows`` in all."""
        if self._rows is None:
            self._rows = np.memmap(self._path, np.float32, "w+", shape=(rows, log_p.shape[1]))
        self._rows[row : row + len(log_p)] = log_p.float().cpu().numpy()

    def take(self, row: int, count: int) -> torch.Tensor:
        """``count`` rows from ``row`` on."""
        assert self._rows is not None, "the reference runs first"
        return torch.from_numpy(np.array(self._rows[row : row + count]))


@contextmanager
def shelf() -> Iterator[Shelf]:
    """A shelf in a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="memgpt-quality-") as folder:
        yield Shelf(Path(folder) / "log_probabilities")


@dataclass
class Teacher:
    """Leads a model through a text, and scores what it would have said.

    It watches a workload's logits (as its observer) and picks the text's own next token (as its pick). From
    ``first`` on each token of ``tokens``, ``[batch, length]``, is scored, and ``rows`` counts the rows of the
    shelf that were used before this batch.

    ``at_once`` says that one pass over the text gives all logits; else each pass gives those of one token.
    """

    tokens: torch.Tensor
    first: int
    at_once: bool
    scores: Scores
    shelf: Shelf | None = None
    writes: bool = False
    rows: int = 0
    all_rows: int = 0
    _scored: int = field(default=0, init=False)

    def phase(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """Nothing to note."""
        return nullcontext()

    def mark(self, component: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """Score the logits; other tensors are no matter."""
        if component == "logits":
            for logits in tensors:
                if logits is not None:
                    self._score(logits)

    def __call__(self, logits: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
        """The token that stands in the text."""
        del logits
        at = min(sequence.shape[1], self.tokens.shape[1] - 1)
        return self.tokens[:, at : at + 1]

    @property
    def per_row(self) -> int:
        """Tokens that are scored of each row."""
        return int(self.tokens.shape[1]) - self.first

    def _score(self, logits: torch.Tensor) -> None:
        count = self.per_row if self.at_once else 1
        at = self.first + self._scored
        for number, row in enumerate(logits[:, -count:]):
            log_p = row.float().log_softmax(-1)
            self.scores.add(log_p, self.tokens[number, at : at + count])
            self._shelve(number * self.per_row + self._scored, log_p)
        self._scored += count

    def _shelve(self, row: int, log_p: torch.Tensor) -> None:
        if self.shelf is None:
            return
        if self.writes:
            self.shelf.put(self.rows + row, log_p, self.all_rows)
        else:
            self.scores.compare(log_p, self.shelf.take(self.rows + row, len(log_p)).to(log_p.device))
