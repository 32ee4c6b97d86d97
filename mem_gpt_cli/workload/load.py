"""A model's memory and values: one matrix after the other where they are quantized.

A matrix that is to be quantized is in full only from the moment that it is filled until its codes are there.
All else has its memory from the beginning. Random values are drawn in transformers' own order, so that a
quantized model of a seed is the full model of that seed, quantized.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from mem_gpt_cli.model.build import empty_like_on, initialise, materialise
from mem_gpt_cli.model.weights import StoredWeights
from mem_gpt_cli.quantization.modules import full_matrix, quantized_layers, set_module

Watch = Callable[[str], AbstractContextManager[None]]
"""What is to know that the module of a path is being loaded."""


@dataclass
class Matrix:
    """One matrix that is to be quantized, and the layers that hold it: one, or those that are tied."""

    holders: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def plain(self) -> list[torch.nn.Module]:
        """The full layers."""
        return [layer.replaced for _, layer in self.holders]

    @property
    def last_turn(self) -> torch.nn.Module:
        """The module at whose turn random values are final."""
        found: torch.nn.Module = self.holders[0][1].filled_at
        return found

    def names(self, part: str) -> list[str]:
        """The names that one of its tensors may be stored by."""
        return [f"{path}.{part}" for path, _ in self.holders]

    def give_memory(self, device: torch.device) -> None:
        """Have the full matrix."""
        self._set_full(empty_like_on(self.plain[0].weight, device))  # type: ignore[arg-type]

    def quantize(self, stored: StoredWeights | None) -> None:
        """Store its values, the random ones that it has or those of a file, and let go of the full matrix."""
        if stored is not None:
            stored.take(self.plain[0].weight, *self.names("weight"))  # type: ignore[arg-type]
        matrix = full_matrix(self.plain[0]).detach().contiguous()
        self._set_full(None)
        self.holders[0][1].quantize(matrix)
        self._share()

    def put(self, stored: StoredWeights | None, device: torch.device) -> None:
        """Take the codes of a file; without a file, memory for them."""
        layer = self.holders[0][1]
        parts = {name: empty_like_on(part, device) for name, part in layer.parts().items()}
        if stored is not None:
            for name, part in parts.items():
                stored.take(part, *self.names(name))
        self._set_full(None)
        layer.put(parts)
        self._share()

    def _set_full(self, weight: torch.Tensor | None) -> None:
        for layer in self.plain:
            layer.register_parameter("weight", weight)  # type: ignore[arg-type]

    def _share(self) -> None:
        (_, first), *others = self.holders
        for _, layer in others:
            layer.put(first.parts())


class Loading:
    """Gives a model on ``meta`` its memory and its values.

    Args:
        model: the model, quantized layers in their places.
        device: where the memory is taken.
        saved: the weights are stored as they are quantized.
        watch: entered with the path of each matrix while it is quantized.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device,
        *,
        saved: bool = False,
        watch: Watch = lambda _: nullcontext(),
    ) -> None:
        self.model, self.device, self.saved, self.watch = model, device, saved, watch
        shared: dict[int, Matrix] = defaultdict(Matrix)
        for path, layer in quantized_layers(model):
            shared[id(layer.replaced.weight)].holders.append((path, layer))
        self.matrices = list(shared.values())

    def run(self, weights: Callable[[torch.nn.Module], StoredWeights] | None = None) -> None:
        """Load; ``weights`` opens the real ones, given the model as it is without options."""
        holders = [holder for matrix in self.matrices for holder in matrix.holders]
        for path, layer in holders:
            set_module(self.model, path, layer.replaced)
        stored = weights(self.model) if weights is not None else None
        full = [layer.replaced.weight for _, layer in holders]
        for weight in full:
            weight._is_hf_initialized = self.saved or stored is not None  # spares it the random values
        materialise(self.model, self.device, but={id(weight) for weight in full})
        del full
        if self.saved:
            initialise(self.model)
            self._take(stored)
        else:
            self._fill_in_turns(stored)
        if stored is not None:
            stored.fill(self.model)
        for path, layer in holders:
            if isinstance(getattr(layer.replaced, "bias", None), torch.nn.Parameter):
                layer.bias = layer.replaced.bias
            layer.settle()
            set_module(self.model, path, layer)

    def _take(self, stored: StoredWeights | None) -> None:
        """Each matrix as it was saved."""
        for matrix in self.matrices:
            with self.watch(matrix.holders[0][0]):
                matrix.put(stored, self.device)

    def _fill_in_turns(self, stored: StoredWeights | None) -> None:
        """Each matrix has its memory from its own turn on and its codes from the last one that fills it."""
        begin = {layer: matrix for matrix in self.matrices for layer in matrix.plain}
        end: dict[torch.nn.Module, list[Matrix]] = defaultdict(list)
        for matrix in self.matrices:
            end[matrix.last_turn].append(matrix)
        begun: set[int] = set()

        def before(module: torch.nn.Module) -> None:
            matrix = begin.get(module)
            if matrix is not None and id(matrix) not in begun:
                begun.add(id(matrix))
                matrix.give_memory(self.device)

        def after(module: torch.nn.Module) -> None:
            for matrix in end[module]:
                with self.watch(matrix.holders[0][0]):
                    matrix.quantize(stored)

        initialise(self.model, before, after)
