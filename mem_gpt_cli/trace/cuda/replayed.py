"""A dry run's events through the GPU's caching allocator: what torch's own counters would say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mem_gpt_cli.allocator.replay import Replay, replay
from mem_gpt_cli.devices.card import Card
from mem_gpt_cli.devices.verdict import Ending
from mem_gpt_cli.ledger import Curves, EventLog


@dataclass(frozen=True)
class Replayed:
    """Live bytes as blocks (rounded up, and whole where torch does not split), and what is reserved.

    Args:
        curves: by blocks; their total is what ``torch.cuda.memory_allocated`` tells.
        reserved: each phase's peak of ``torch.cuda.memory_reserved``.
        whole: the replay with as much memory as it takes.
        dies_of_settings: the settings leave torch a part of the card, in which it does not live.
    """

    curves: Curves
    reserved: Mapping[str, int]
    whole: Replay
    dies_of_settings: bool = False

    def within(self, capacity: int, card: Card) -> Ending:
        """How the run ends with no more than ``capacity`` bytes to reserve."""
        if self.whole.peak_reserved <= capacity and not self.dies_of_settings:
            return Ending(self.whole.retries)
        log = self.curves.log
        run = replay(_events(log), card.settings, capacity, device_bytes=card.gpu.total_bytes)
        if run.death is None:
            return Ending(run.retries)
        operation = log.operations[int(self.curves.operation[run.death.event])]
        phase = log.spans[operation.span].phase
        return Ending(run.retries, run.death, phase, operation.name, operation.module)


def replayed(log: EventLog, card: Card) -> Replayed:
    """Replay a log of all layers and steps."""
    whole = replay(_events(log), card.settings, device_bytes=card.gpu.total_bytes)
    dies = whole.death is not None
    if dies:
        whole = replay(_events(log), card.settings.without_fraction())
    sizes = np.asarray([whole.block_bytes.get(s, 0) for s in range(len(log.storage_bytes))], dtype=np.int64)
    curves = log.curves(sizes)
    reserved: dict[str, int] = {}
    for number, span in enumerate(log.spans):
        highest = int(whole.reserved[curves.span == number].max())
        reserved[span.phase] = max(reserved.get(span.phase, 0), highest)
    return Replayed(curves, reserved, whole, dies)


def _events(log: EventLog) -> Iterator[tuple[int, int]]:
    """Each event as the replay takes it: the storage, and its bytes with the event's sign."""
    storages, signs, _ = log.arrays()
    nbytes = np.asarray(log.storage_bytes, dtype=np.int64)[storages] * signs
    return zip(storages.tolist(), nbytes.tolist(), strict=True)
