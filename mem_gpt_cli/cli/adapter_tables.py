"""How ``memgpt adapters`` shows saved adapters to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from mem_gpt_cli.adapters.base import stored
from mem_gpt_cli.adapters.folder import SavedAdapter, by_target
from mem_gpt_cli.report.sizes import render_bytes


def list_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line an adapter, also where it cannot be read; ``rows`` as JSON holds them."""
    columns = ("folder", "base", "rank", "targets", "params", "bytes", "saved")
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for number in (2, 4, 5):
        table.columns[number].justify = "right"
    for row in rows:
        if "problem" in row:
            table.add_row(row["folder"], "not read")
            continue
        table.add_row(
            row["folder"],
            row["base"] or "",
            ", ".join(map(str, row["ranks"])),
            ", ".join(row["targets"]),
            f"{row['parameters']:,}",
            render_bytes(row["bytes"]),
            row["saved"][:16].replace("T", " "),
        )
    return table


def facts_table(adapter: SavedAdapter) -> Table:
    """What an adapter was made of."""
    record = adapter.record
    root = " over the root of the rank" if adapter.lora.use_rslora else ""
    noted = "no note of memgpt's: checked by names and shapes"
    if record:
        real = bool(record.base.weights)
        noted = "architecture and some weights" if real else "architecture (its weights were random)"
    facts = {
        "adapter": str(adapter.folder),
        "base": adapter.base or "not said",
        "noted of the base": noted,
        "trained over": f"weights in {stored(record.scheme)}" if record else "",
        "alpha": f"{adapter.lora.lora_alpha:g}{root}",
        "stored as": ", ".join(adapter.dtypes),
        "parameters": f"{adapter.parameters:,}",
        "bytes": f"{adapter.nbytes:,} ({render_bytes(adapter.nbytes)})",
        "saved": adapter.saved.isoformat(),
    }
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for name, value in facts.items():
        if value:
            table.add_row(name, value)
    return table


def targets_table(adapter: SavedAdapter) -> Table:
    """The factors at each target."""
    columns = ("target", "matrices", "rank", "outputs x inputs", "params", "bytes")
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for target, factors in by_target(adapter).items():
        shapes = dict.fromkeys(f"{one.outputs:,} x {one.inputs:,}" for one in factors)
        table.add_row(
            target,
            str(len(factors)),
            ", ".join(map(str, sorted({one.rank for one in factors}))),
            ", ".join(shapes),
            f"{sum(one.parameters for one in factors):,}",
            render_bytes(sum(one.nbytes for one in factors)),
        )
    return table
