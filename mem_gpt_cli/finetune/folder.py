"""The folder of a run: what was asked, how far it is, and that one process alone writes to it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.finetune.checkpoints import Checkpoints, clear_hidden, write_file
from mem_gpt_cli.finetune.log import StepsLog
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.recipe.writing import resolved

SCHEMA_VERSION = 1
RESULTS = ("adapter", "model")
"""The folders that a run leaves its result in: one or the other."""
_MAY_CHANGE = (
    "description", "budget", "device.threads", "finetune.data", "finetune.held_out",
    "finetune.checkpoint_every", "finetune.keep_checkpoints", "versions",
)  # fmt: skip
"""What changes nothing of what is learnt; the data and the threads that run are compared themselves."""


class RunFolder:
    """The files of a run under one folder."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", keep)
        self.log = StepsLog(path / "log.jsonl")
        self._run = path / "run.json"
        self._before = path / "before.json"
        self._result = path / "result.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, which is made where it is missing.

        Raises:
            UsageError: where another process holds it, or it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            why = error.strerror or str(error)
            raise UsageError(f"--out {self.path} cannot be written to: {why.lower()}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise UsageError(f"--out {self.path}: another process trains here: wait for it") from error
        finally:
            os.close(file)  # and with it the lock, also when the process is killed

    def refuse_unless(self, asked: Mapping[str, Any], *, resume: bool) -> None:
        """Pass a folder that is free, or, to resume, whose run was asked for with the same words.

        Args:
            asked: what ``description_of`` says of the run that is to begin or to go on.
            resume: whether to go on.

        Raises:
            UsageError: for another one.
        """
        began = self.asked
        if began is None:
            others = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
            if others:
                raise UsageError(
                    f"--out {self.path} holds {others[0]!r}, and no run: name a folder of its own"
                )
            return
        if not resume:
            raise UsageError(f"--out {self.path} holds a run: add --resume to go on, or name another folder")
        changes = list(_differences(began, asked))
        if changes:
            more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise UsageError(
                f"--resume: {self.path} was begun otherwise: {'; '.join(changes[:3])}{more}: ask for the "
                "same, or name another --out"
            )

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Note what was asked, if the run is new, and clear what a killed process left."""
        for name in RESULTS:
            clear_hidden(self.path, name)
        self.checkpoints.clear()
        if self.asked is None:
            write_file(self._run, json.dumps(asked, indent=2) + "\n")

    @property
    def asked(self) -> dict[str, Any] | None:
        """What the run was begun with."""
        return _read(self._run)

    @property
    def before(self) -> dict[str, Any] | None:
        """What was evaluated before the first step."""
        return _read(self._before)

    @before.setter
    def before(self, value: Mapping[str, Any]) -> None:
        write_file(self._before, json.dumps(value) + "\n")

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a run that is over."""
        return _read(self._result)

    @result.setter
    def result(self, value: Mapping[str, Any]) -> None:
        write_file(self._result, json.dumps(value, indent=2) + "\n")


def description_of(recipe: Recipe, **more: Any) -> dict[str, Any]:
    """What a run is: the recipe and what else its numbers hang on."""
    return {"schema_version": SCHEMA_VERSION, "recipe": resolved(recipe), **more}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): name another --out") from error
    return found if isinstance(found, dict) else None


def _differences(began: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    before, now = dict(_flat(began)), dict(_flat(asked))
    for key in dict.fromkeys((*before, *now)):
        name = key.removeprefix("recipe.")
        if any(name == one or name.startswith(f"{one}.") for one in _MAY_CHANGE):
            continue
        if before.get(key) != now.get(key):
            yield f"{name} was {json.dumps(before.get(key))} and is {json.dumps(now.get(key))}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, one in value.items():
        if isinstance(one, Mapping) and one:
            yield from _flat(one, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", one
