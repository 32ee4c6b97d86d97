"""From an account of memory to a timeline that can be drawn."""

from __future__ import annotations

import numpy as np

from mem_gpt_cli.profile.account import Account
from mem_gpt_cli.report.timeline import Peak, Stretch, Timeline, merged


def timeline_of(account: Account, title: str) -> Timeline:
    """The account on an axis of seconds since the load began."""
    first = int(account.time_ns[0])
    position = (account.time_ns - first) / 1e9
    phase, moment = max(account.peaks().items(), key=lambda item: item[1].allocated_bytes)
    begins = position[np.searchsorted(account.span, np.arange(len(account.log.spans)))]
    ends = [*begins[1:].tolist(), float(position[-1])]
    return Timeline(
        title=title,
        axis="seconds",
        position=position,
        by_component=account.by_component,
        stretches=merged(
            Stretch(span.phase, begin, end)
            for span, begin, end in zip(account.log.spans, begins.tolist(), ends, strict=True)
        ),
        peak=Peak(
            float(position[moment.event]),
            moment.allocated_bytes,
            phase,
            moment.operation.name,
            moment.operation.module,
        ),
    )
