"""A function run in a process of its own, seen from outside: whatever happens to it becomes an answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Literal

Ending = Literal["ok", "unavailable", "failed", "crashed", "hung"]

_START = "import sys; sys.path[:] = {path!r}; from mem_gpt_cli.doctor.child import main; main()"
"""With the same path as this process, so that it finds the same packages, wherever it is started."""

LONGEST_SENTENCE = 300


@dataclass(frozen=True)
class Attempt:
    """How it went.

    Args:
        ending: ``unavailable`` found nothing to run on, ``failed`` raised or gave no answer, ``crashed`` was
            ended by a signal, ``hung`` took too long.
        sentence: why it is not ``ok``; empty where it is.
        answer: what the function returned.
        seconds: how long it took, the start of Python and the imports included.
    """

    ending: Ending
    sentence: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def attempt(function: str, timeout_s: float, **arguments: Any) -> Attempt:
    """Run ``package.module:function`` with ``arguments``, which JSON must hold, in a fresh process.

    What it and its libraries print is kept from this process's output; they get no input and no hub.
    """
    return asyncio.run(attempt_soon(function, timeout_s, **arguments))


async def attempt_soon(function: str, timeout_s: float, **arguments: Any) -> Attempt:
    """``attempt`` beside others; whoever cancels it ends the process."""
    start = monotonic()
    with tempfile.TemporaryDirectory(prefix="memgpt-doctor-") as folder, tempfile.TemporaryFile() as said:
        answer = Path(folder, "answer.json")
        started = (sys.executable, "-P", "-c", _START.format(path=sys.path))
        process = await asyncio.create_subprocess_exec(
            *(*started, str(answer), function, json.dumps(arguments)),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # so that it can be ended with all processes that it starts
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            code = await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            sentence = f"gave no answer within {timeout_s:g} s and was ended"
            return Attempt("hung", sentence, {}, monotonic() - start)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        said.seek(0)
        ending, sentence, found = _judge(code, _read(answer), said.read().decode(errors="replace"))
        return Attempt(ending, sentence[:LONGEST_SENTENCE], found, monotonic() - start)


def _judge(code: int, answer: dict[str, Any], said: str) -> tuple[Ending, str, Mapping[str, Any]]:
    if code < 0:
        return "crashed", f"ended by signal {-code}: {signal.strsignal(-code)}", {}
    if "unavailable" in answer:
        return "unavailable", str(answer["unavailable"]), {}
    if "error" in answer:
        return "failed", str(answer["error"]), {}
    if code or not isinstance(answer.get("found"), dict):
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        last = f": {lines[-1]}" if lines else ""
        return "failed", f"ended with exit code {code} and no answer{last}", {}
    return "ok", "", answer["found"]


def _read(path: Path) -> dict[str, Any]:
    try:
        answer = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}
