"""What every layer with a quantized matrix can do, whoever's code it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mem_gpt_cli.quantization.plan import Method


class QuantizedLayer(ABC):
    """A mixin of ``nn.Module`` whose matrix, ``[rows, columns]``, is stored by ``method``.

    ``rows`` are outputs and ``columns`` inputs; of an embedding tokens and width. The tensors of the matrix
    are on torch's ``meta`` device until they are given values, by ``quantize`` or by ``put``.
    """

    method: Method
    writes_out_its_matrix = True  # what the ledger knows it by: what it makes on the way is workspace
    replaced: torch.nn.Module | None = None
    filled_at: torch.nn.Module | None = None

    @abstractmethod
    def quantize(self, matrix: Tensor) -> None:
        """Store the values of ``[rows, columns]``, on the matrix's device."""

    @abstractmethod
    def parts(self) -> dict[str, Tensor]:
        """Everything that is stored of the matrix, by names within the layer."""

    @abstractmethod
    def put(self, parts: Mapping[str, Tensor]) -> None:
        """Store these tensors, named as by ``parts``."""

    @abstractmethod
    def dequantized(self) -> Tensor:
        """The values that are stored, ``[rows, columns]``, in the model's dtype."""

    def stand_for(self, layer: torch.nn.Module, filled_at: torch.nn.Module) -> None:
        """Remember the full layer in whose place this one stands, on ``meta``, until the values are there.

        ``filled_at`` is the module at whose turn transformers gives the full layer its final random values.
        """
        # Past ``nn.Module``'s own bookkeeping: neither is a child of this layer.
        self.__dict__.update(replaced=layer, filled_at=filled_at)

    def settle(self) -> None:
        """Forget the full layer: the values are there."""
        self.__dict__.update(replaced=None, filled_at=None)


def parameter(data: Tensor, kind: type[torch.nn.Parameter], **attributes: Any) -> torch.nn.Parameter:
    """A library's kind of parameter over ``data``, with the attributes its code looks for.

    A tensor subclass, as a fake tensor is, cannot be made another subclass; it gets the attributes alone, as
    ``torch.nn.Parameter`` does with it.
    """
    if type(data) is Tensor:
        made: torch.nn.Parameter = kind(data, requires_grad=False, **attributes)
        return made
    plain = torch.nn.Parameter(data, requires_grad=False)
    for name, value in attributes.items():
        setattr(plain, name, value)
    return plain
