"""The recorded pass: the allocator's account and the ledger of storages over the same run."""

from __future__ import annotations

import numpy as np

from mem_gpt_cli.ledger import Ledger
from mem_gpt_cli.ledger.allocator import record_allocator
from mem_gpt_cli.profile.account import Account, Sightings, TimedLog, account_of
from mem_gpt_cli.profile.progress import Ticker, Ticking
from mem_gpt_cli.profile.run import Job, run


def recorded_run(job: Job, ticker: Ticker) -> Account:
    """Run the workload and account for every byte that the device's allocator hands out.

    On a GPU the events are the ledger's: kernels' inner buffers are in its allocator's peak alone.
    """
    if job.device.is_cuda:
        log, _ = _run_under_ledger(job, ticker)
        return _of_ledger(log)
    with record_allocator() as trace:
        log, sightings = _run_under_ledger(job, ticker)
    return account_of(log, sightings.seen, trace)


def _run_under_ledger(job: Job, ticker: Ticker) -> tuple[TimedLog, Sightings]:
    sightings = Sightings()
    ledger = Ledger(logits_width=job.vocabulary, on_birth=sightings)
    log = TimedLog()
    ledger.log = log
    with ledger:
        run(job, Ticking(ledger, ticker, lambda: log.live_bytes), built=ledger.modules.name)
    return log, sightings


def _of_ledger(log: TimedLog) -> Account:
    curves = log.curves()
    time_ns = np.asarray(log.operation_time_ns, dtype=np.int64)[curves.operation]
    return Account(log, time_ns, curves.live, curves.by_component, curves.operation, curves.span)
