"""Adapters on paper: the factors on the books, and their products beside a frozen matrix's.

Sources: peft 0.21 ``tuners/lora/layer.py`` (``Linear.forward``) and ``tuners/lora/bnb.py`` (``Linear4bit``,
``Linear8bitLt``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mem_gpt_cli.adapters.cost import Adapted
from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.books import ADAPTERS, FP32, Ledger, Storage
from mem_gpt_cli.estimate.parameters import names_in_walk
from mem_gpt_cli.estimate.tape import Parameter, Tape, Tensor
from mem_gpt_cli.quantization.plan import Method


class Factors(NamedTuple):
    """One adapter of a matrix: ``down`` ``[rank, inputs]`` and ``up`` ``[outputs, rank]``."""

    down: Parameter
    up: Parameter
    rank: int
    dropout: float


class Adapters:
    """The adapters of a model, by the names of their matrices in the walk.

    Args:
        ledger: where the factors are booked.
        fresh: those that are trained, if anything is.
        loaded: those that are frozen.
        dropout: what is in force before a fresh adapter.
        training: whether fresh ones are trained.
    """

    def __init__(
        self,
        ledger: Ledger,
        fresh: Sequence[Adapted],
        loaded: Sequence[Adapted] = (),
        *,
        dropout: float = 0.0,
        training: bool = False,
    ) -> None:
        self.dropout, self.training = dropout, training
        self.storages = [
            Storage(ledger, ADAPTERS, nbytes, "empty") for one in (*fresh, *loaded) for nbytes in one.factors
        ]
        self.parameters: dict[str, Parameter] = {}
        self._of: dict[str, list[tuple[Adapted, bool, int]]] = {}
        for number, one in enumerate((*fresh, *loaded)):
            for name in names_in_walk(one.module, one.layer):
                self._of.setdefault(name, []).append((one, number < len(fresh), number))

    def of(self, name: str, inputs: int, outputs: int) -> Sequence[Factors]:
        """The adapters of a matrix; where it is walked as two, both share the first factor."""
        return [
            Factors(
                self._factor(f"{number}.down", one.rank * inputs, number, fresh=fresh),
                self._factor(f"{number}.up.{name}", one.rank * outputs, number, fresh=fresh),
                one.rank,
                self.dropout if fresh else 0.0,
            )
            for one, fresh, number in self._of.get(name, ())
        ]

    def _factor(self, name: str, numel: int, number: int, *, fresh: bool) -> Parameter:
        if name not in self.parameters:
            trainable = fresh and self.training
            self.parameters[name] = Parameter(
                numel, FP32, self.storages[2 * number], trainable, frozen=not fresh
            )
        return self.parameters[name]


def beside(
    tape: Tape, x: Tensor, product: Tensor, adapters: Sequence[Factors], method: Method | None, outputs: int
) -> Tensor:
    """``product``, a matrix's own, plus the product of each pair of factors; each peft layer does it its way.

    Over bitsandbytes' layers what is added has the product's width, and 4 bits' product is copied first; over
    all others the sum has the wider one until it is complete.
    """
    width, bitsandbytes = product.item, method is not None and method.backend == "bitsandbytes"
    if bitsandbytes and method is not None and method.scheme != "int8":
        product = ops.clone(tape, product)
    # peft's layers over bitsandbytes' leave the widths to autocast by ``torch.is_autocast_enabled()``: CUDA's
    converts = not (bitsandbytes and tape.cuda and tape.autocast)
    for one in adapters:
        if converts:
            x = ops.cast(tape, x, FP32)
        output = _scaled(tape, x, one, outputs)
        if bitsandbytes and converts:
            output = ops.cast(tape, output, width)
        product = ops.add(tape, product, output)
        if not bitsandbytes:
            del output
    return ops.cast(tape, product, width)


def _scaled(tape: Tape, x: Tensor, one: Factors, outputs: int) -> Tensor:
    """``up(down(dropout(x))) * scaling``."""
    x = ops.dropout(tape, x, one.dropout)
    low = ops.linear(tape, x, one.down, one.rank)
    high = ops.linear(tape, low, one.up, outputs)
    del low, x
    return ops.pointwise(tape, "mul", high)


def by_layer(adapted: Sequence[Adapted], layers: int) -> Sequence[Mapping[str, int]]:
    """What tells one layer's adapters from another's: for each layer the ranks, by name within it."""
    found: list[dict[str, int]] = [{} for _ in range(layers)]
    for one in adapted:
        if one.layer is not None:
            _, _, rest = one.module.partition(f".{one.layer}.")
            found[one.layer][rest] = found[one.layer].get(rest, 0) + one.rank
    return found
