"""The log of a run: one JSON object a step, on the disk before the next step begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.finetune.checkpoints import write_file
from mem_gpt_cli.report.jsonl import append_object, line_of, read_objects


class StepsLog:
    """The steps of a run in a file; those after the checkpoint that it goes on from are taken again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: dict[str, Any]) -> None:
        """One more step."""
        append_object(self.path, step)

    def cut(self, steps: int) -> int:
        """Keep the first so many, and say how many of them there are.

        Raises:
            UsageError: for a line that is no step.
        """
        kept = []
        for number, step in enumerate(read_objects(self.path), 1):
            if not isinstance(step.get("step"), int):
                raise UsageError(
                    f"{self.path}:{number}: is no step of a run: delete the file, and --resume goes on"
                )
            if step["step"] <= steps:
                kept.append(step)
        write_file(self.path, "".join(f"{line_of(step)}\n" for step in kept))
        return len(kept)


@dataclass
class Sums:
    """What all steps so far come to. Checkpoints keep it: the account of a run needs no log."""

    first_loss: float | None = None
    last_loss: float | None = None
    tokens: int = 0
    seconds: float = 0.0

    def add(self, step: Mapping[str, Any]) -> None:
        """One more step, as the log has it."""
        if self.first_loss is None:
            self.first_loss = step["loss"]
        self.last_loss = step["loss"]
        self.tokens += step["tokens"]
        self.seconds += step["seconds"]
