"""Child processes that end in time, with all that they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from benchmarks.gpu import ROOT


def run_child(
    command: Sequence[str],
    timeout_s: float,
    *,
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    output: IO[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in the top folder of the sources.

    Args:
        command: what to run.
        timeout_s: after that it is killed, with its own children: they would keep memory of the GPU.
        text: its standard input.
        environment: instead of this process's.
        output: where both of its streams go; without it they are in the answer.

    Raises:
        subprocess.TimeoutExpired: if it had to be killed.
    """
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE if text is not None else subprocess.DEVNULL,
        stdout=output or subprocess.PIPE,
        stderr=subprocess.STDOUT if output else subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(text, timeout=timeout_s)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
