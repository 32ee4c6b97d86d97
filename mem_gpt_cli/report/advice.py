"""The cheapest change that lowers a peak, as a line under a table; see ``estimate.advice``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mem_gpt_cli.report.model import MemoryReport
from mem_gpt_cli.report.sizes import render_bytes

PRICES: Mapping[str, str] = {
    "free": "which costs nothing",
    "time": "which costs time",
    "result": "which changes the result",
}


def advice_line(report: MemoryReport) -> Text | None:
    """What to change first, what that saves by the formula, and what it costs; ``None`` without advice."""
    found = report.details.get("advice")
    if not found:
        return None
    first = found[0]
    saved = render_bytes(-first["saved_bytes"])
    text = Text(f"Cheapest change that lowers it: {first['change']}: {saved}, {PRICES[first['price']]}\n")
    return text.append("  " + settings(first["set"]), style="dim")


def settings(values: Mapping[str, Any]) -> str:
    """The change as a command line takes it."""
    return " ".join(f"--set {key}={_written(value)}" for key, value in values.items())


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
