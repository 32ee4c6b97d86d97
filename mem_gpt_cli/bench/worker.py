"""A process for cells, seen from outside: whatever happens to it becomes an outcome."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import IO, Any

from mem_gpt_cli.bench.outcome import Outcome, Status
from mem_gpt_cli.recipe import resolved
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.json import from_dict
from mem_gpt_cli.report.model import Lens, MemoryReport

OnPhase = Callable[[str, int, int], None]
"""Called as ``(phase, step, steps)`` at each step of a real run."""

_START = "import sys; sys.path[:] = {path!r}; from mem_gpt_cli.bench.cell import main; main()"
"""With the same path as this process, so that it finds the same packages, wherever it is started."""

_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The variables that torch's CUDA allocator reads, once, when it is first used; the second wins, if set."""

_VMSTAT = Path("/proc/vmstat")
_GRACE_S = 10.0


class Worker:
    """One process, started at its first cell; a new one is started where the last did not survive.

    A cell whose ``device.allocator`` is another than the last one's gets a new process too.
    """

    def __init__(self) -> None:
        self._allocator: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._events = -1
        self._stderr: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process's number; ``None`` where none is running."""
        return self._process.pid if self._process else None

    def run(
        self, recipe: Recipe, lenses: Sequence[Lens], timeout_s: float | None, on_phase: OnPhase
    ) -> Outcome:
        """Run one cell; a crash, a kill and a timeout are outcomes too."""
        start = monotonic()
        kills = _out_of_memory_kills()
        process = self._started(recipe.device.allocator)
        cell = _Cell(lenses)
        deadline = None if timeout_s is None else start + timeout_s
        try:
            self._send(process, {"recipe": resolved(recipe), "lenses": list(lenses)})
            for event in self._read(deadline):
                cell.take(event, on_phase)
                if cell.ended:
                    return cell.outcome(monotonic() - start)
        except TimeoutError:
            self.close()
            cell.fail("error", f"took longer than {timeout_s:g} s and was ended")
            return cell.outcome(monotonic() - start)
        except BaseException:
            self.close()
            raise
        code = process.wait()
        cell.fail(*self._death(code, kills))
        self.close()
        return cell.outcome(monotonic() - start)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(_GRACE_S)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        os.close(self._events)
        assert self._stderr is not None
        self._stderr.close()

    def _started(self, allocator: str | None) -> subprocess.Popen[bytes]:
        if allocator != self._allocator:
            self.close()
        self._allocator = allocator
        if self._process is None:
            self._events, writer = os.pipe()
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START.format(path=sys.path), str(writer)],
                stdin=subprocess.PIPE,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=[writer],
                # A session of its own: an interrupt reaches the sweep alone, which then ends its worker.
                start_new_session=True,
                env=environment_of(allocator),
            )
            os.close(writer)
        return self._process

    def _send(self, process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the end of its events says so
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()

    def _read(self, deadline: float | None) -> Iterator[dict[str, Any]]:
        """The events as they come, until the process closes them.

        Raises:
            TimeoutError: when the deadline passes first.
        """
        pending = b""
        while True:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if not select.select([self._events], [], [], left)[0]:
                raise TimeoutError
            data = os.read(self._events, 1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def _death(self, code: int, kills_before: int | None) -> tuple[Status, str]:
        """Why a process ended in the middle of a cell."""
        if code == -signal.SIGKILL:
            kills = _out_of_memory_kills()
            if kills is not None and kills_before is not None and kills > kills_before:
                return "oom", "killed by the system, which had run out of memory"
            return "error", "killed by SIGKILL"
        if code < 0:
            return "error", f"killed by {signal.Signals(-code).name}"
        assert self._stderr is not None
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return "error", f"ended with exit code {code}" + (f": {said[-1]}" if said else "")


class _Cell:
    """Collects the events of one cell."""

    def __init__(self, lenses: Sequence[Lens]) -> None:
        self.ended = False
        self._lenses = lenses
        self._reports: dict[Lens, MemoryReport] = {}
        self._seconds: dict[Lens, float] = {}
        self._statuses: list[Status] = []
        self._errors: list[str] = []
        self._start_reserved_bytes: int | None = None
        self._phase: str | None = None

    def take(self, event: dict[str, Any], on_phase: OnPhase) -> None:
        """Note one event; see ``mem_gpt_cli.bench.cell`` for their kinds."""
        match event["event"]:
            case "begin":
                self._start_reserved_bytes = event["reserved_bytes"]
            case "phase":
                self._phase = event["phase"]
                on_phase(event["phase"], event["step"], event["steps"])
            case "report":
                self._reports[event["lens"]] = from_dict(event["report"])
                self._seconds[event["lens"]] = event["seconds"]
            case "refused":
                # What the last lens answers is what the cell is for: without the others it is still ok.
                if event["lens"] == self._lenses[-1]:
                    self._statuses.append("unsupported")
                self._errors.append(event["error"])
            case "pruned":
                self.fail("pruned", event["error"])
            case "failed":
                self.fail(event["status"], event["error"])
            case "end":
                self.ended = True

    def fail(self, status: Status, error: str) -> None:
        """The cell has that status, for that reason."""
        self._statuses.append(status)
        self._errors.append(error)

    def outcome(self, seconds: float) -> Outcome:
        """What became of the cell; of several statuses the gravest."""
        gravity: tuple[Status, ...] = ("oom", "error", "pruned", "unsupported")
        status: Status = next((grave for grave in gravity if grave in self._statuses), "ok")
        return Outcome(
            status=status,
            reports=self._reports,
            seconds=self._seconds,
            cell_s=seconds,
            failed_phase=self._phase
            if status in ("oom", "error") and "profile" not in self._reports
            else None,
            error="; ".join(self._errors) or None,
            start_reserved_bytes=self._start_reserved_bytes,
        )


def environment_of(allocator: str | None) -> dict[str, str]:
    """This process's environment, with the allocator's settings where a recipe gives them."""
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    if allocator is not None:
        for name in _ALLOCATOR:
            environment.pop(name, None)
        environment[_ALLOCATOR[0]] = allocator
    return environment


def _out_of_memory_kills() -> int | None:
    """How many processes the kernel has killed for want of memory, ``None`` where it does not count."""
    try:
        words = _VMSTAT.read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return None
