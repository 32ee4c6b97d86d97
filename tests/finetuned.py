"""What tests of fine-tuning share: the sizes of a small run."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""``memgpt`` in this process: exit code, stdout, stderr."""
SIZES = (
    "--data",
    "sample",
    "--batch",
    "2",
    "--seq",
    "32",
    "--steps",
    "3",
    "--set",
    "finetune.evaluate_tokens=256",
    "--set",
    "device.threads=1",
)
