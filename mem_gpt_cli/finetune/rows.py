"""Encoded documents as rows of one length: filled one after the other, or padded one by one."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch

from mem_gpt_cli.finetune.tokens import Encoded
from mem_gpt_cli.loss.targets import IGNORED


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
        return int((self.labels[chosen, 1:] != IGNORED).sum())

    def digest(self) -> str:
        """16 hex digits that stand for the tokens, the labels and their order."""
        found = sha256(str(tuple(self.tokens.shape)).encode())
        for tensor in (self.tokens, self.labels):
            found.update(tensor.numpy().reshape(-1).data)
        return found.hexdigest()[:16]


def packed(documents: Iterable[Encoded], seq: int, padding: int) -> Rows:
    """Rows that documents fill one after the other, whatever ends where; the last one is padded."""
    laying = _Laying(seq, padding)
    ids, learnt = array("i"), bytearray()
    for document in documents:
        ids.extend(document.ids)
        learnt.extend(document.learnt)
        full = len(ids) - len(ids) % seq
        laying.add(ids[:full], learnt[:full])
        del ids[:full], learnt[:full]
    laying.add(ids, learnt)
    return laying.rows()


def padded(documents: Iterable[Encoded], seq: int, padding: int) -> Rows:
    """One document a row, padded at its end; one that is longer goes on in rows of its own if all of it is
    learnt, else it is cut."""
    laying = _Laying(seq, padding)
    for ids, learnt in documents:
        if len(ids) <= seq or all(learnt):
            laying.add(ids, learnt)
        else:
            laying.cut += 1
            laying.add(ids[:seq], learnt[:seq])
    return laying.rows()


class _Laying:
    """Rows as they come, in plain numbers of four bytes: data is larger than anything made of it here."""

    def __init__(self, seq: int, padding: int) -> None:
        self._seq, self._padding = seq, padding
        self._tokens, self._labels, self._lengths = array("i"), array("i"), array("i")
        self._dropped = self.cut = 0

    def add(self, ids: MutableSequence[int], learnt: MutableSequence[int]) -> None:
        """Tokens, in as many rows as they take; a row that holds nothing to learn is dropped."""
        for start in range(0, len(ids), self._seq):
            self._row(ids[start : start + self._seq], learnt[start : start + self._seq])

    def _row(self, ids: MutableSequence[int], learnt: MutableSequence[int]) -> None:
        if not any(learnt[1:]):
            self._dropped += 1
            return
        rest = self._seq - len(ids)
        self._tokens.extend([*ids, *[self._padding] * rest])
        labels = [token if wanted else IGNORED for token, wanted in zip(ids, learnt, strict=True)]
        self._labels.extend([*labels, *[IGNORED] * rest])
        self._lengths.append(len(ids))

    def rows(self) -> Rows:
        """All of them."""
        tokens, labels, lengths = (
            torch.from_numpy(np.asarray(numbers, dtype=np.int32))
            for numbers in (self._tokens, self._labels, self._lengths)
        )
        shape = (len(lengths), self._seq)
        return Rows(tokens.reshape(shape), labels.reshape(shape), lengths, self._dropped, self.cut)


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
