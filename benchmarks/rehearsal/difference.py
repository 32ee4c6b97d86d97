"""Where a trace and a rehearsal part: allocation by allocation, phase by phase.

``python -m benchmarks.rehearsal.difference history.json events.jsonl``: the first from ``run --history``, the
second from ``memgpt estimate --trace --full-depth --events`` of the same recipe on the same GPU.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
"""torch's allocator gives multiples of this many bytes: ``kMinBlockSize`` in its caching allocator."""


class Event(NamedTuple):
    """An allocation of so many bytes, negative where it is freed, and by whom."""

    nbytes: int
    who: str


Spans = Mapping[str, Sequence[Event]]


def rehearsed(history: Path) -> Spans:
    """The events of an allocator's history, by span; autograd's threads belong to the backward under way."""
    spans: defaultdict[str, list[Event]] = defaultdict(list)
    span = ""
    for entry in json.loads(history.read_text())["device_traces"][0]:
        told = entry.get("user_metadata", "").removeprefix("after ")
        span = told or span
        here = told or span.replace("forward:", "backward:")
        if entry["action"] == "alloc":
            spans[here].append(Event(_block(entry["size"]), _caller(entry.get("frames", ()))))
        elif entry["action"] == "free_completed":
            spans[here].append(Event(-_block(entry["size"]), ""))
    return spans


def traced(events: Path) -> Spans:
    """The events of a trace's log, by span."""
    first, *lines = events.read_text().splitlines()
    header = json.loads(first)
    spans: defaultdict[str, list[Event]] = defaultdict(list)
    for _, nbytes, operation, _ in map(json.loads, lines):
        span, operator, module = header["operations"][operation]
        size = _block(abs(nbytes))
        if size:
            phase, occurrence = header["spans"][span]
            spans[f"{phase}:{occurrence}"].append(
                Event(size if nbytes > 0 else -size, f"{operator} {module}")
            )
    return spans


def differences(real: Spans, predicted: Spans) -> Iterator[str]:
    """A text on each span, and each stretch in which the two differ."""
    for span in {**predicted, **real}:
        ours, theirs = predicted.get(span, ()), real.get(span, ())
        sizes = [[event.nbytes for event in events] for events in (theirs, ours)]
        matcher = SequenceMatcher(None, sizes[0], sizes[1], autojunk=False)
        stretches = [codes for codes in matcher.get_opcodes() if codes[0] != "equal"]
        yield f"{span}: {len(theirs)} rehearsed, {len(ours)} traced, {len(stretches)} stretches differ"
        for _, real_from, real_to, from_, to in stretches:
            yield from (f"    rehearsed {nbytes:>15,}  {who}" for nbytes, who in theirs[real_from:real_to])
            yield from (f"    traced    {nbytes:>15,}  {who}" for nbytes, who in ours[from_:to])
            yield "    --"


def _block(nbytes: int) -> int:
    return -(-nbytes // BLOCK) * BLOCK


def _caller(frames: Sequence[Mapping[str, object]]) -> str:
    """The innermost Python function outside of torch."""
    for frame in frames:
        if "/torch/" not in str(frame["filename"]):
            return f"{Path(str(frame['filename'])).name}:{frame['line']} {frame['name']}"
    return ""


def main() -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("history", type=Path)
    parser.add_argument("events", type=Path)
    asked = parser.parse_args()
    for line in differences(rehearsed(asked.history), traced(asked.events)):
        print(line)


if __name__ == "__main__":
    main()
