"""The recorded pass: the allocator's account and the ledger of storages over the same run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mem_gpt_cli.allocator.sizes import MIN_BLOCK_BYTES, round_up
from mem_gpt_cli.ledger import Ledger
from mem_gpt_cli.ledger.allocator import record_allocator
from mem_gpt_cli.profile.account import Account, Sightings, TimedLog, account_of
from mem_gpt_cli.profile.device import CudaDevice
from mem_gpt_cli.profile.progress import Ticker, Ticking
from mem_gpt_cli.profile.run import Job, run


class BlockLog(TimedLog):
    """The only record of a run on a GPU, so it notes the time of each event itself.

    A storage counts as the block that CUDA's allocator rounds it up to, as in the trace's components.
    """

    def __init__(self) -> None:
        super().__init__()
        self.event_time_ns: list[int] = []

    def storage(self, nbytes: int, component: str | None = None) -> int:
        """A new storage's number."""
        return super().storage(round_up(nbytes, MIN_BLOCK_BYTES), component)

    def account(self) -> Account:
        """The events until the last span's end; the clearing away after it is no part of the workload."""
        curves = self.curves()
        time_ns = np.asarray(self.event_time_ns, dtype=np.int64)
        own = time_ns <= self.span_end_ns[-1]
        return Account(
            self,
            time_ns[own],
            curves.live[own],
            curves.by_component[own],
            curves.operation[own],
            curves.span[own],
        )

    def _append(self, storage: int, sign: int) -> None:
        self.event_time_ns.append(time.time_ns())
        super()._append(storage, sign)


class TimedLedger(Ledger):
    """A ledger that knows when, and where in the device's memory."""

    def __init__(self, job: Job, log: TimedLog) -> None:
        self.sightings = Sightings()
        device = job.device.torch_device.type
        super().__init__(logits_width=job.logits_width, on_birth=self.sightings, device=device)
        self.log: TimedLog = log

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of the report, and the time when it is left."""
        with super().phase(name):
            yield
        self.log.leave()


def recorded_run(job: Job, ticker: Ticker) -> Account:
    """Run the workload and account for every byte that the device's allocator hands out.

    On a GPU the events are the ledger's: kernels' inner buffers are in its allocator's peak alone.
    """
    if isinstance(job.device, CudaDevice):
        blocks = BlockLog()
        _run_under(TimedLedger(job, blocks), job, ticker)
        return blocks.account()
    ledger = TimedLedger(job, TimedLog())
    with record_allocator() as trace:
        _run_under(ledger, job, ticker)
    return account_of(ledger.log, ledger.sightings.seen, trace)


def _run_under(ledger: TimedLedger, job: Job, ticker: Ticker) -> None:
    with ledger:
        run(job, Ticking(ledger, ticker, lambda: ledger.log.live_bytes), built=ledger.modules.name)
