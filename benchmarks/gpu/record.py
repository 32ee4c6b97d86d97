"""``environment.json``: what ran when, on what, and what was left out and why. Written after every change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import MemgptError

NAME = "environment.json"


class LeftOutError(MemgptError):
    """A stage cannot run here; the sentence says why."""


class Record:
    """The runs whose results lie in one folder; ``run`` is the one that goes on.

    Each run holds its facts and its ``stages``: name, start, end, ``status`` (``running``, which is also what
    a killed run leaves, ``done``, ``cut off``, ``left out`` or ``failed``) and ``why``.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._path = folder / NAME
        self._runs = runs_in(folder)
        self.run: dict[str, Any] = {"started": _now(), **facts, "stages": []}
        self._runs.append(self.run)
        self._save()

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Note a stage; names put into the list are what it had no time for. Its errors end here."""
        entry: dict[str, Any] = {
            "name": name,
            "started": _now(),
            "ended": None,
            "status": "running",
            "why": None,
        }
        self.run["stages"].append(entry)
        self._save()
        left: list[str] = []
        try:
            yield left
            entry["status"] = "cut off" if left else "done"
            if left:
                entry["why"] = f"no time for {', '.join(left)}"
        except LeftOutError as reason:
            entry |= {"status": "left out", "why": str(reason)}
        except Exception as error:  # whatever breaks, the stages after it still run
            entry |= {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        finally:
            entry["ended"] = _now()
            self._save()
            said = f": {entry['why']}" if entry["why"] else ""
            print(f"{name}: {entry['status']}{said}", flush=True)

    @property
    def whole(self) -> bool:
        """Whether every stage of this run came to its end or had a reason not to run."""
        return all(entry["status"] in ("done", "left out") for entry in self.run["stages"])

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".tmp")
        beside.write_text(json.dumps({"runs": self._runs}, indent=1) + "\n")
        beside.replace(self._path)


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """The runs that a folder tells of, the oldest first."""
    try:
        runs: list[dict[str, Any]] = json.loads((folder / NAME).read_text())["runs"]
    except FileNotFoundError:
        return []
    return runs


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
