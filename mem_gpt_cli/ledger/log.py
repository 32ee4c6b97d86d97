"""What happened to memory, event by event, and the arithmetic over it.

A log is three parallel lists: the operations that ran, the storages that lived, and the events (a storage
born or freed) in their order. Components are labels on storages; a label given late, when a buffer turns
out to have become a gradient, counts for the whole life of the storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mem_gpt_cli.report import COMPONENTS

Int64 = npt.NDArray[np.int64]


class Span(NamedTuple):
    """One stretch of a phase: the ``occurrence``-th time that it was entered, counting from 0."""

    phase: str
    occurrence: int


class Operation(NamedTuple):
    """One operator call: where in the model, in which span, and whether backward called it.

    ``module`` is the path of the innermost module running, e.g. ``transformer.h.0.mlp.c_fc``; in backward it
    is the module whose forward made the autograd node.
    """

    span: int
    name: str
    module: str


@dataclass(frozen=True)
class Moment:
    """The state at one event: ``components`` in bytes, adding up to ``allocated_bytes``."""

    allocated_bytes: int
    components: dict[str, int]
    operation: Operation
    event: int


class EventLog:
    """An append-only record of births and deaths of storages."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.operations: list[Operation] = []
        self.storage_bytes: list[int] = []
        self.storage_component: list[str | None] = []
        self._event_storage: list[int] = []
        self._event_sign: list[int] = []
        self._event_operation: list[int] = []

    def enter(self, phase: str) -> None:
        """Begin a span; what is live then counts towards its peak even if the span only frees."""
        occurrence = sum(span.phase == phase for span in self.spans)
        self.spans.append(Span(phase, occurrence))
        self.operate("(start)", "")
        self._append(self.storage(0), 0)

    def operate(self, name: str, module: str) -> None:
        """Name the operation that the following events belong to."""
        self.operations.append(Operation(len(self.spans) - 1, name, module))

    def storage(self, nbytes: int, component: str | None = None) -> int:
        """A new storage's number; its birth is a separate event."""
        self.storage_bytes.append(nbytes)
        self.storage_component.append(component)
        return len(self.storage_bytes) - 1

    def birth(self, storage: int) -> None:
        """The storage begins to hold memory."""
        self._append(storage, 1)

    def death(self, storage: int) -> None:
        """The storage gives its memory back."""
        self._append(storage, -1)

    def label(self, storage: int, component: str) -> None:
        """The storage belongs to a component, from its birth on; a later label replaces an earlier one."""
        self.storage_component[storage] = component

    def _append(self, storage: int, sign: int) -> None:
        self._event_storage.append(storage)
        self._event_sign.append(sign)
        self._event_operation.append(len(self.operations) - 1)

    def __len__(self) -> int:
        return len(self._event_storage)

    def __iter__(self) -> Iterator[tuple[int, int, Operation]]:
        """Each event as (storage, +bytes or -bytes, operation)."""
        for storage, sign, operation in zip(
            self._event_storage, self._event_sign, self._event_operation, strict=True
        ):
            yield storage, sign * self.storage_bytes[storage], self.operations[operation]

    def curves(self, sizes: Int64 | None = None) -> Curves:
        """Live bytes after each event, in all and by component; ``sizes`` replace the storages' own."""
        return Curves.of(self, sizes)

    def arrays(self) -> tuple[Int64, Int64, Int64]:
        """Storage, sign and operation of each event."""
        return (
            np.asarray(self._event_storage, dtype=np.int64),
            np.asarray(self._event_sign, dtype=np.int64),
            np.asarray(self._event_operation, dtype=np.int64),
        )


@dataclass(frozen=True)
class Curves:
    """``live[e]`` bytes after event ``e``; ``by_component[e, c]`` of them in component ``c``."""

    log: EventLog
    live: Int64
    by_component: Int64
    operation: Int64
    span: Int64

    @classmethod
    def of(cls, log: EventLog, sizes: Int64 | None = None) -> Curves:
        """Add up a log; storages without a label are what their phase leaves them to be (see ``default``)."""
        storage, sign, operation = log.arrays()
        span_of_operation = np.asarray([op.span for op in log.operations], dtype=np.int64)
        nbytes = np.asarray(log.storage_bytes, dtype=np.int64) if sizes is None else sizes
        born_in: dict[int, int] = {}
        for event in np.flatnonzero(sign == 1):
            born_in.setdefault(int(storage[event]), int(span_of_operation[operation[event]]))
        component = np.asarray(
            [
                COMPONENTS.index(
                    label or default_component(log.spans[born_in[s]].phase if s in born_in else "")
                )
                for s, label in enumerate(log.storage_component)
            ],
            dtype=np.int64,
        )
        delta = nbytes[storage] * sign
        spread = np.zeros((len(storage), len(COMPONENTS)), dtype=np.int64)
        spread[np.arange(len(storage)), component[storage]] = delta
        by_component = spread.cumsum(axis=0)
        return cls(log, delta.cumsum(), by_component, operation, span_of_operation[operation])

    def moment(self, event: int) -> Moment:
        """The state after one event."""
        return Moment(
            allocated_bytes=int(self.live[event]),
            components=dict(zip(COMPONENTS, map(int, self.by_component[event]), strict=True)),
            operation=self.log.operations[int(self.operation[event])],
            event=event,
        )

    def peaks(self) -> dict[Span, Moment]:
        """The highest moment of each span, the first of equals."""
        found: dict[Span, Moment] = {}
        for index, span in enumerate(self.log.spans):
            events = np.flatnonzero(self.span == index)
            found[span] = self.moment(int(events[self.live[events].argmax()]))
        return found


def default_component(phase: str) -> str:
    """What an unlabelled buffer is: an activation, or workspace in loading and in the optimizer's step."""
    return "workspace" if phase in ("load", "optimizer_step", "") else "activations"
