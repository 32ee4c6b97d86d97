"""The CSV of a sweep: written a row at a time, read back to go on where a sweep was left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mem_gpt_cli.bench.columns import COLUMNS, Row
from mem_gpt_cli.report.csv import QUALITY_COLUMNS, append_row, read_rows, refuse_other_columns
from mem_gpt_cli.report.model import Lens

_COUNTS = frozenset(
    {
        *("schema_version", "cell", "parameters", "baseline_cell", "threads"),
        *("batch", "seq", "prompt_tokens", "new_tokens", "steps", "seed"),
    }
)
_COUNT_ENDINGS = ("_bytes",)
_FIGURES = frozenset(QUALITY_COLUMNS)
_FIGURE_ENDINGS = ("_percent", "_s", "_ms", "_ms_per_token", "_ratio", "_w", "_c")
_JSON = frozenset({"values", "lenses"})


class Store:
    """The rows of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Refuse a file of other columns before anything is run.

        Raises:
            UsageError: if the file holds another table, or cannot be read.
        """
        refuse_other_columns(self.path, COLUMNS)

    def append(self, row: Row) -> None:
        """Add a row and see it onto the disk.

        Raises:
            UsageError: if the file cannot be written.
        """
        append_row(self.path, COLUMNS, row)

    def finished(self, lenses: Sequence[Lens]) -> dict[str, Row]:
        """The last row of each cell, by digest, in which all of ``lenses`` were asked and all went well."""
        if not self.path.exists():
            return {}
        rows = map(typed, read_rows(self.path))
        return {
            row["digest"]: row for row in rows if row["status"] == "ok" and set(lenses) <= set(row["lenses"])
        }


def typed(texts: dict[str, str]) -> Row:
    """A row as it was before it was written; what the file leaves empty is ``None``."""
    return {column: _value(column, text) for column, text in texts.items()}


def _value(column: str, text: str) -> object:
    if text == "":
        return None
    if column in _JSON:
        return json.loads(text)
    if column in _COUNTS or column.endswith(_COUNT_ENDINGS):
        return int(text)
    return float(text) if column in _FIGURES or column.endswith(_FIGURE_ENDINGS) else text
