"""A quantized model by its name, in one line of Python: a facade, which stands above all rooms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mem_gpt_cli as memgpt
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model import resolve
from mem_gpt_cli.recipe.schema import Model

if TYPE_CHECKING:
    from mem_gpt_cli.workload.text_model import TextModel

SCHEMES = {4: "nf4", 8: "int8"}
"""What so many bits a weight stand for."""


class QuantizedModel:
    """Makes text models with quantized weights; what it makes is what ``mem_gpt_cli.load`` makes."""

    @staticmethod
    def from_pretrained(
        name: str | Path,
        bits: int | None = None,
        *,
        dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
        device: str = "cpu",
        **quantization: Any,
    ) -> TextModel:
        """The model of a catalogue name, path or hub id, quantized while it is loaded.

        Args:
            name: as ``model.name`` in a recipe.
            bits: 4 or 8; by default as the folder was saved, and 4 where it was not saved quantized.
            dtype: the width of what is not quantized.
            device: cpu, cuda or cuda:N.
            quantization: further keys of a recipe's ``quantization`` section, or ``scheme`` in place of bits.

        Raises:
            UsageError: for another number of bits, or a model that cannot be found.
            RecipeError: for keys that do not go together.
            EnvironmentUnavailableError: for a backend that is not installed, weights that cannot be read, or
                a device that is not there.
        """
        if bits is not None and bits not in SCHEMES:
            raise UsageError(f"bits is {bits}: weights are quantized to 4 or 8 bits")
        section = dict(quantization)
        if bits is not None:
            section.setdefault("scheme", SCHEMES[bits])
        elif not section and resolve(Model(name=str(name))).saved_quantization is None:
            section["scheme"] = SCHEMES[4]
        model = {"name": str(name), "dtype": dtype}
        return memgpt.load({"model": model, "device": device, "quantization": section})
