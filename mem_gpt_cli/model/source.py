"""Where a model comes from and what its config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.model.families import read_architecture

Origin = Literal["catalogue", "path", "gguf", "embedded", "hub"]


QUANTIZATION_KEY = "memgpt_quantization"
"""The key of a saved config that says how its weights are quantized."""


@dataclass(frozen=True)
class ModelSource:
    """One model, found: its config and, where they are local, its weights.

    ``config`` is a Hugging Face config.json as a mapping, the recipe's replacements applied. ``folder`` holds
    a model in transformers' format, ``gguf_file`` one in GGUF. ``source`` is the URL or path that the config
    is from, ``where`` its short name in error messages, ``notes`` what a reader of a report should be told.
    """

    name: str
    origin: Origin
    config: Mapping[str, Any]
    where: str
    folder: Path | None = None
    gguf_file: Path | None = None
    weights_are_local: bool = False
    source: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def saved_quantization(self) -> Mapping[str, Any] | None:
        """How the weights of a saved folder are quantized already, as a recipe's section; ``None``: not."""
        found = self.config.get(QUANTIZATION_KEY)
        return found if isinstance(found, Mapping) and self.weights_are_local else None

    @cached_property
    def architecture(self) -> Architecture:
        """The model's numbers.

        Raises:
            UnsupportedError: for a ``model_type`` that the closed form does not know.
            UsageError: for a value in the config that no model can have.
        """
        return read_architecture(self.config, self.where)
