"""The recorded pass: the allocator's account and the ledger of storages over the same run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mem_gpt_cli.ledger import Ledger
from mem_gpt_cli.ledger.allocator import record_allocator
from mem_gpt_cli.profile.account import Account, Sightings, TimedLog, account_of
from mem_gpt_cli.profile.device import CudaDevice
from mem_gpt_cli.profile.progress import Ticker, Ticking
from mem_gpt_cli.profile.run import Job, run


class TimedLedger(Ledger):
    """A ledger that knows when, and where in the device's memory."""

    def __init__(self, logits_width: int | None, device: str) -> None:
        self.sightings = Sightings()
        super().__init__(logits_width=logits_width, on_birth=self.sightings, device=device)
        self.log: TimedLog = TimedLog()

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
    ledger = TimedLedger(job.logits_width, job.device.torch_device.type)
    if isinstance(job.device, CudaDevice):
        _run_under(ledger, job, ticker)
        return _of_ledger(ledger.log)
    with record_allocator() as trace:
        _run_under(ledger, job, ticker)
    return account_of(ledger.log, ledger.sightings.seen, trace)


def _run_under(ledger: TimedLedger, job: Job, ticker: Ticker) -> None:
    with ledger:
        run(job, Ticking(ledger, ticker, lambda: ledger.log.live_bytes), built=ledger.modules.name)


def _of_ledger(log: TimedLog) -> Account:
    curves = log.curves()
    time_ns = np.asarray(log.operation_time_ns, dtype=np.int64)[curves.operation]
    return Account(log, time_ns, curves.live, curves.by_component, curves.operation, curves.span)
