"""The rows of a stage's CSV: what they share, the last one of each cell, and which need not be repeated."""

from __future__ import annotations

from pathlib import Path

from mem_gpt_cli.bench.columns import RECIPE_KEYS, Row
from mem_gpt_cli.bench.store import typed
from mem_gpt_cli.report.csv import read_rows

IDENTITY = (
    "schema_version",
    "memgpt_version",
    "torch_version",
    "transformers_version",
    "started",
    "key",
    "digest",
    "status",
)
"""Columns that say which cell a row is of, what ran it, and how it ended: as in the CSV of a sweep."""
OPTIONS = tuple(column for column in RECIPE_KEYS if column != "budget_bytes")
"""Columns of a cell's recipe; no cell has a budget."""
GOOD = ("ok", "unsupported")
"""Statuses that another run would not change."""


def latest(path: Path) -> dict[str, Row]:
    """The last row of each cell, by digest; none without a file."""
    return {row["digest"]: row for row in map(typed, read_rows(path))} if path.exists() else {}


def good(path: Path) -> dict[str, Row]:
    """Those of them whose cell succeeded, or cannot be had here."""
    return {digest: row for digest, row in latest(path).items() if row["status"] in GOOD}
