"""The events of a dry run as a file, for replaying them through an allocator."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.ledger import EventLog
from mem_gpt_cli.ledger.log import default_component

FORMAT_VERSION = 1


def write_events(log: EventLog, path: Path, recipe: Mapping[str, Any]) -> None:
    """Write a log as JSON Lines, whole or not at all.

    The first line is an object: ``format_version``, ``recipe``, ``spans`` (``[phase, occurrence]``) and
    ``operations`` (``[span, operator, module]``). Each further line is one event,
    ``[storage, bytes, operation, component]``: bytes are negative where the storage is freed, 0 where a span
    begins.

    Raises:
        UsageError: where the file cannot be written.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "recipe": recipe,
        "spans": [list(span) for span in log.spans],
        "operations": [list(operation) for operation in log.operations],
    }
    storages, signs, operations = log.arrays()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(header) + "\n")
            for storage, sign, operation in zip(
                storages.tolist(), signs.tolist(), operations.tolist(), strict=True
            ):
                phase = log.spans[log.operations[operation].span].phase
                component = log.storage_component[storage] or default_component(phase)
                nbytes = sign * log.storage_bytes[storage]
                file.write(json.dumps([storage, nbytes, operation, component]) + "\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"--events: cannot write {path}: {error.strerror}") from error
