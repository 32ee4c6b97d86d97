"""Which model: its config, found by name or path, and its architecture by numbers."""

from mem_gpt_cli.model.architecture import Architecture, Attention, Layer, Mlp, Tensor
from mem_gpt_cli.model.entries import Entry, catalogue
from mem_gpt_cli.model.families import read_architecture
from mem_gpt_cli.model.resolve import resolve
from mem_gpt_cli.model.source import ModelSource

__all__ = [
    "Architecture",
    "Attention",
    "Entry",
    "Layer",
    "Mlp",
    "ModelSource",
    "Tensor",
    "catalogue",
    "read_architecture",
    "resolve",
]
