"""Encoded documents as rows of one length: filled one after the other, or padded one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch

from mem_gpt_cli.finetune.tokens import Encoded

NOT_LEARNT = -100
"""The label that the loss leaves out."""


@dataclass(frozen=True)
class Rows:
    """Sequences of one length, ``[rows, seq]`` each: tokens, labels, and each row's length without padding.

    ``dropped`` counts the rows that held nothing to learn, ``cut`` the documents that were longer than a row.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor
    dropped: int = 0
    cut: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def learnt(self, chosen: torch.Tensor) -> int:
        """How many tokens of some rows are predicted; the first of a row never is."""
        return int((self.labels[chosen, 1:] != NOT_LEARNT).sum())

    def digest(self) -> str:
        """16 hex digits that stand for the tokens, the labels and their order."""
        found = sha256(str(tuple(self.tokens.shape)).encode())
        for tensor in (self.tokens, self.labels):
            found.update(tensor.numpy().tobytes())
        return found.hexdigest()[:16]


def packed(documents: Iterable[Encoded], seq: int, padding: int) -> Rows:
    """Rows that documents fill one after the other, whatever ends where; the last one is padded."""
    ids: list[int] = []
    learnt: list[bool] = []
    for document in documents:
        ids.extend(document.ids)
        learnt.extend(document.learnt)
    return _rows([Encoded(ids, learnt)], seq, padding)


def padded(documents: Sequence[Encoded], seq: int, padding: int) -> Rows:
    """One document a row, padded at its end; one that is longer goes on in rows of its own if all of it is
    learnt, else it is cut."""
    whole = [all(document.learnt) for document in documents]
    kept = [
        document if all_learnt else Encoded(document.ids[:seq], document.learnt[:seq])
        for document, all_learnt in zip(documents, whole, strict=True)
    ]
    cut = sum(
        not all_learnt and len(document.ids) > seq
        for document, all_learnt in zip(documents, whole, strict=True)
    )
    return _rows(kept, seq, padding, cut)


def _rows(documents: Sequence[Encoded], seq: int, padding: int, cut: int = 0) -> Rows:
    tokens: list[list[int]] = []
    labels: list[list[int]] = []
    lengths: list[int] = []
    dropped = 0
    for ids, learnt in _stretches(documents, seq):
        row = [token if wanted else NOT_LEARNT for token, wanted in zip(ids, learnt, strict=True)]
        if all(label == NOT_LEARNT for label in row[1:]):
            dropped += 1
            continue
        rest = seq - len(ids)
        tokens.append(ids + [padding] * rest)
        labels.append(row + [NOT_LEARNT] * rest)
        lengths.append(len(ids))
    shape = (len(tokens), seq)
    return Rows(
        torch.tensor(tokens, dtype=torch.int32).reshape(shape),
        torch.tensor(labels, dtype=torch.int32).reshape(shape),
        torch.tensor(lengths, dtype=torch.int32),
        dropped,
        cut,
    )


def _stretches(documents: Sequence[Encoded], seq: int) -> Iterator[Encoded]:
    for ids, learnt in documents:
        for start in range(0, len(ids), seq):
            yield Encoded(ids[start : start + seq], learnt[start : start + seq])


class Order:
    """The endless order in which rows are learnt: all of them shuffled, then all of them shuffled anew.

    It hangs on ``seed`` and the place alone, so that a run goes on anywhere without having gone there.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._epoch, self._shuffled = -1, torch.empty(0, dtype=torch.int64)

    def take(self, first: int, count: int) -> torch.Tensor:
        """The rows at the places ``first`` to ``first + count``, counted from the beginning of the run."""
        return torch.tensor([self._at(place) for place in range(first, first + count)])

    def _at(self, place: int) -> int:
        epoch, offset = divmod(place, self._rows)
        if epoch != self._epoch:
            seed = int.from_bytes(sha256(f"{self._seed} {epoch}".encode()).digest()[:8]) >> 1
            self._shuffled = torch.randperm(self._rows, generator=torch.Generator().manual_seed(seed))
            self._epoch = epoch
        return int(self._shuffled[offset])
