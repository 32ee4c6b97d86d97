"""Which sources run here, and whether predictions were committed before what they are compared with.

Where the kit runs from a copy of the sources without their history, the files are told by git's own hash of
their content (a blob's: SHA-1 of ``blob SIZE NUL CONTENT``), which the history knows afterwards.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from benchmarks.gpu import ROOT

COMMIT_VARIABLE = "MEMGPT_COMMIT"
"""Says which commit a copy without history was made of."""


@dataclass(frozen=True)
class Verdict:
    """Whether a comparison is blind; ``why`` is a sentence."""

    blind: Literal["yes", "no", "undecided"]
    why: str


def commit() -> str | None:
    """The commit that is checked out, with ``+changes`` where sources differ from it; ``None`` if unknown."""
    head = git("rev-parse", "HEAD")
    if head is None:
        return os.environ.get(COMMIT_VARIABLE)
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "mem_gpt_cli", "benchmarks/gpu")
    return f"{head}+changes" if changed else head


def blob_of(path: Path) -> str | None:
    """Git's hash of a file's content; ``None`` where there is no file."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def judge(predictions: Path, blob: str | None, results: Path, began: datetime, root: Path = ROOT) -> Verdict:
    """Whether predictions, by their content, were committed before the run and before any result for the GPU.

    Args:
        predictions: the file, which may have changed since.
        blob: the hash of its content in the run.
        results: the first file with measurements on that GPU.
        began: when the run began.
        root: the checkout.
    """
    if blob is None:
        return Verdict("no", f"there were no predictions in {predictions.name}")
    if git("rev-parse", "HEAD", root=root) is None:
        return Verdict(
            "undecided", "there is no git history here: judge it in the checkout, by --stages summary"
        )
    commits = git(
        "log", "--format=%H %ct", "--reverse", f"--find-object={blob}", "--", str(predictions), root=root
    )
    if not commits:
        return Verdict(
            "no", "the predictions, as they were in the run, are in no commit that HEAD descends from"
        )
    predicted, seconds = commits.splitlines()[0].split()
    if int(seconds) > began.timestamp():
        return Verdict("no", f"the predictions were committed ({predicted[:10]}) after the run began")
    first = git("log", "--format=%H", "--reverse", "--diff-filter=A", "--", str(results), root=root)
    if first and git("merge-base", "--is-ancestor", first.splitlines()[0], predicted, root=root) is not None:
        return Verdict("no", f"results for this GPU were committed before the predictions ({predicted[:10]})")
    return Verdict("yes", f"the predictions were committed ({predicted[:10]}) before the run and any result")


def git(*arguments: str, root: Path = ROOT) -> str | None:
    """What git prints, ``None`` where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
