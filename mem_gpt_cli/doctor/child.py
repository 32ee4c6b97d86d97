"""The process in which one function is tried, from inside; ``attempt`` is the same from outside.

Its arguments are the file for the answer, ``package.module:function``, and the function's arguments as JSON.
The answer is ``{"found": {...}}``, ``{"unavailable": "..."}`` where there is nothing that it could run on, or
``{"error": "..."}``.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import EnvironmentUnavailableError


def main() -> None:
    """Call the function and write down how it went."""
    file, function, arguments = sys.argv[1:]
    Path(file).write_text(_answer(function, json.loads(arguments)), encoding="utf-8")


def _answer(function: str, arguments: dict[str, Any]) -> str:
    module, _, name = function.partition(":")
    try:
        return json.dumps({"found": getattr(import_module(module), name)(**arguments)})
    except EnvironmentUnavailableError as error:
        return json.dumps({"unavailable": str(error)})
    except Exception as error:
        return json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())})
