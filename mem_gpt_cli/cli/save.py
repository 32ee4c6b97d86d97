"""``memgpt save``: the model of a recipe, converted or quantized, as a folder."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from mem_gpt_cli.cli import console
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.cli.startup import hush_libraries

OF_A_RUN = (
    "task", "batch", "seq", "prompt-tokens", "new-tokens", "attention", "kv-cache", "checkpointing",
    "adapters", "optimizer", "loss", "device", "budget", "csv",
)  # fmt: skip
"""Flags of what is done with a model, or of measuring it: they change nothing of what is saved."""


@takes_recipe(without=OF_A_RUN)
def save(
    request: Request,
    out: Annotated[
        Path, typer.Option("--out", help="The folder to write; it must not hold a model.", metavar="FOLDER")
    ],
) -> None:
    """Write a recipe's model, with its key-value heads pooled or weights quantized, and its tokenizer."""
    hush_libraries()
    from transformers.utils import logging

    from mem_gpt_cli.workload.save import save as save_model

    logging.disable_progress_bar()
    saved = save_model(request.recipe(), out)
    nbytes = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if request.json:
        print(json_text.dumps({"model": saved.name, "folder": str(out), "weights_bytes": nbytes}))
        return
    for note in saved.source.notes:
        console.warn(note)
    print(f"{saved.name} is in {out}, {nbytes:,} B of weights: use it as --model {out}")
