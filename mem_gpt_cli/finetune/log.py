"""The log of a run: one JSON object a step, on the disk before the next step begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mem_gpt_cli.finetune.checkpoints import write_file
from mem_gpt_cli.report.jsonl import append_object, line_of, read_objects


class StepsLog:
    """The steps of a run in a file; those after the checkpoint that it goes on from are taken again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: dict[str, Any]) -> None:
        """One more step."""
        append_object(self.path, step)

    def steps(self) -> list[dict[str, Any]]:
        """All steps so far."""
        return read_objects(self.path)

    def cut(self, steps: int) -> None:
        """Keep the first so many."""
        kept = [step for step in self.steps() if step["step"] <= steps]
        write_file(self.path, "".join(f"{line_of(step)}\n" for step in kept))
