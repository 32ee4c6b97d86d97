"""The rows of a stage's CSV: the last one of each cell, and which cells a resumed run need not repeat."""

from __future__ import annotations

from pathlib import Path

from mem_gpt_cli.bench.columns import Row
from mem_gpt_cli.bench.store import typed
from mem_gpt_cli.report.csv import read_rows

GOOD = ("ok", "unsupported")
"""Statuses that another run would not change."""


def latest(path: Path) -> dict[str, Row]:
    """The last row of each cell, by digest; none without a file."""
    return {row["digest"]: row for row in map(typed, read_rows(path))} if path.exists() else {}


def good(path: Path) -> dict[str, Row]:
    """Those of them whose cell succeeded, or cannot be had here."""
    return {digest: row for digest, row in latest(path).items() if row["status"] in GOOD}
