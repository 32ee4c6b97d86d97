"""`memgpt-tiny`, the model that the package holds: a GPT-2 trained by ``examples/train_tiny.py``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

NAME = "memgpt-tiny"


def folder() -> Path:
    """Return the model folder: config, fp16 weights, tokenizer, ``training.json`` and the held-out speeches.

    Wheels are installed as plain files, so the folder is a real one that transformers can read.
    """
    return Path(str(files(__name__)))
