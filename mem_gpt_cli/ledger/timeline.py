"""From curves of live bytes, traced or measured, to a timeline that can be drawn."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from mem_gpt_cli.ledger.log import EventLog, Int64, Moment
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.timeline import Peak, Stretch, Timeline, merged


class Stacked(Protocol):
    """Live bytes after each event by component, and the span of each: ``Curves``, or a measured account."""

    @property
    def log(self) -> EventLog: ...  # noqa: D102
    @property
    def live(self) -> Int64: ...  # noqa: D102
    @property
    def by_component(self) -> Int64: ...  # noqa: D102
    @property
    def span(self) -> Int64: ...  # noqa: D102
    def moment(self, event: int) -> Moment: ...  # noqa: D102


def timeline_of(curves: Stacked, title: str, seconds: npt.NDArray[np.float64] | None = None) -> Timeline:
    """The curves on an axis of ``seconds``, ascending, one for each event; without them, of event numbers."""
    count = len(curves.live)
    if seconds is None:  # a trace ends with clearing everything away, which is no part of the workload
        count = int(np.flatnonzero(np.diff(curves.live) > 0)[-1]) + 2
    position = np.arange(count, dtype=np.float64) if seconds is None else seconds
    spans = curves.log.spans
    begins = position[np.searchsorted(curves.span, np.arange(len(spans)))].tolist()
    ends = [*begins[1:], float(position[-1])]
    highest = int(curves.live.argmax())
    moment = curves.moment(highest)
    return Timeline(
        title=title,
        axis="events" if seconds is None else "seconds",
        position=position,
        by_component=curves.by_component[:count],
        stretches=merged(
            Stretch(span.phase, begin, end) for span, begin, end in zip(spans, begins, ends, strict=True)
        ),
        peak=Peak(
            float(position[highest]),
            moment.allocated_bytes,
            spans[int(curves.span[highest])].phase,
            moment.operation.name,
            moment.operation.module,
        ),
    )


def run_title(model: str, recipe: Recipe, how: str) -> str:
    """What ran, how large it was, and whether it was traced or measured."""
    lengths = recipe.lengths
    sizes = f"{lengths.seq} tokens"
    if recipe.task == "inference":
        sizes = f"{lengths.prompt} prompt and {lengths.new} new tokens"
    return f"{model}, {recipe.task}, {recipe.model.dtype}, batch {recipe.workload.batch}, {sizes}: {how}"
