"""Adapters folded into the weights that they stand beside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mem_gpt_cli.adapters.apply import adapted_layers
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.quantization.layer import QuantizedLayer
from mem_gpt_cli.quantization.modules import full_matrix, set_module


@torch.no_grad()
def merge_adapters(model: torch.nn.Module) -> int:
    """Add the products of all factors in force to their matrices and take the adapters off the model.

    Sums are in fp32 and rounded once to the model's dtype; a quantized matrix is written out, added to and
    quantized again by its own method, so what its codes cannot express is lost.

    Returns:
        How many matrices were changed.

    Raises:
        UsageError: for factors that hold values which are no numbers.
    """
    layers = list(adapted_layers(model))
    for path, layer in layers:
        change = _change(layer)
        if not torch.isfinite(change).all():
            raise UsageError(f"the adapters hold values at {path} that are no numbers: nothing is merged")
        base = layer.base_layer
        if isinstance(base, QuantizedLayer):
            values = base.dequantized()
            base.quantize(change.add_(values).to(values.dtype))
        else:
            matrix = full_matrix(base)
            matrix.copy_(change.add_(matrix))
        set_module(model, path, base)
    if hasattr(model, "peft_config"):
        del model.peft_config  # peft notes on the model what it put there
    return len(layers)


def _change(layer: Any) -> Tensor:
    """The sum of the adapters' products, ``[outputs, inputs]`` in fp32."""
    found: Tensor | None = None
    for name in layer.active_adapters:
        if name in layer.lora_A:
            first, second = layer.lora_A[name].weight.float(), layer.lora_B[name].weight.float()
            product = (second @ first).mul_(layer.scaling[name])
            found = product if found is None else found.add_(product)
    assert found is not None, "a layer without adapters is none of peft's"
    return found
