"""What all layers of one forward pass share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mem_gpt_cli.attention import cost as attention_cost
from mem_gpt_cli.attention.plan import Lsh
from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.adapters import Adapters, beside
from mem_gpt_cli.estimate.books import FP32, INPUTS, MASK
from mem_gpt_cli.estimate.dialect import Dialect
from mem_gpt_cli.estimate.tape import Parameter, Tape, Tensor
from mem_gpt_cli.kv_cache import cost as cache_cost
from mem_gpt_cli.model.architecture import Architecture

if TYPE_CHECKING:
    from mem_gpt_cli.estimate.paged_attention import Pages


@dataclass
class CacheLayer:
    """What one layer's cache keeps; ``tokens`` are visible, the storages may be longer.

    ``beside`` are numbers that the layer keeps as tensors: a window's width, how many tokens there are, the
    scales of what is quantized. ``item`` is the width in bytes that quantized elements are made wide to.
    """

    keys: Tensor
    values: Tensor
    tokens: int
    beside: tuple[Tensor, ...] = ()
    item: int = 0

    def copy(self, tape: Tape) -> CacheLayer:
        """As much once more, in storages of its own."""
        beside = tuple(tape.copy(number) for number in self.beside)
        return CacheLayer(tape.copy(self.keys), tape.copy(self.values), self.tokens, beside, self.item)


@dataclass
class Pass:
    """One forward pass: its sizes, its books and what all layers share.

    ``tokens`` is the length of the input, ``past`` the tokens that a cache holds already. ``room`` is what a
    static cache has room for. ``padded`` says that the sequences are of unlike lengths, so that masks and
    positions are made for each. ``pages`` are those of a paged cache, which brings positions and mask.
    """

    tape: Tape
    architecture: Architecture
    dialect: Dialect
    backend: str
    device: str
    threads: int
    experts: str
    item: int
    batch: int
    tokens: int
    past: int = 0
    lsh: Lsh | None = None
    training: bool = False
    weight: Callable[[str, int], Parameter] = field(kw_only=True)
    adapters: Adapters = field(kw_only=True)
    bias: Callable[[str, int], Parameter | None] = field(kw_only=True)
    norm_weights: Callable[[str, int], Sequence[Parameter]] = field(kw_only=True)
    cache: dict[int, CacheLayer] | None = None
    cache_kind: str = "dynamic"
    room: int | None = None
    padded: bool = False
    pages: Pages | None = None
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    rotary: tuple[tuple[Tensor, Tensor], ...] = ()

    def dropout(self, probability: float) -> float:
        """The dropout probability that is in force."""
        return probability if self.training else 0.0

    @property
    def rows(self) -> int:
        """Tokens of all sequences in this pass."""
        return self.batch * self.tokens

    def project(self, x: Tensor, name: str, inputs: int, outputs: int) -> Tensor:
        """``x`` times the matrix of that name, plus its bias and the products of its adapters."""
        weight, bias = self.weight(name, inputs * outputs), self.bias(name, outputs)
        added = self.adapters.of(name, inputs, outputs)
        if not added:
            return ops.linear(self.tape, x, weight, outputs, bias=bias)
        return beside(
            self.tape,
            x,
            ops.linear(self.tape, x, weight, outputs, bias=bias),
            added,
            weight.method,
            outputs,
        )

    @contextmanager
    def inside(self, slot: int, module: str) -> Iterator[None]:
        """Book what is made inside under ``slot``, and name the module."""
        tape, outer = self.tape, self.tape.slot
        ledger, outer_module = tape.ledger, tape.ledger.module
        tape.slot, ledger.module = slot, module
        yield
        tape.slot, ledger.module = outer, outer_module

    def merges(self, heads: int, tokens: int) -> bool:
        """Whether batch and heads become one dimension that a permuted tensor has no view of."""
        return self.batch > 1 and heads > 1 and tokens > 1

    def prepare(self) -> None:
        """Make what all layers share: a mask for each width of window, the rotary tables."""
        layers = self.architecture.layers
        spans = {cache_cost.span(layer.attention) for layer in layers}
        for width in () if self.pages else spans:
            self._make_mask(width)
        widths = [layer.attention.rotary_dim for layer in layers if layer.attention.rotary_dim]
        if widths:
            kinds = len(spans) if self.dialect.rotary_by_span else 1
            self.rotary = tuple(self._rotary_tables(max(widths)) for _ in range(kinds))

    def keys_seen(self, window: int | None) -> int:
        """Keys that a layer's queries meet: those of the cache and of this pass."""
        if self.room is not None:
            room = self.room_of(window)
            return room if window is None or self.past or self.tokens <= room else self.tokens
        past = self.past if window is None else min(self.past, window - 1)
        return past + self.tokens

    def room_of(self, window: int | None) -> int:
        """Tokens that a layer of a static cache has room for: no more than it ever looks back on."""
        assert self.room is not None
        return self.room if window is None else min(self.room, window)

    def mask_elements(self, mask: Tensor) -> int:
        """Elements of a mask that has all sequences."""
        return mask.numel if self.padded else self.batch * mask.numel

    def hashes(self, window: int | None) -> bool:
        """Whether a sequence attends to itself by hashing (``lsh_interface.lsh_mask``)."""
        if self.lsh is None or self.tokens == 1 or self.past or (self.room is not None and self.padded):
            return False
        return window is None or self.keys_seen(window) < window

    def _needs_mask(self, window: int | None) -> bool:
        """A static cache has keys of no token yet, which no flag hides from a decode step."""
        if self.hashes(window):
            return False
        if self.padded or (self.room is not None and self.past):
            return True
        keys = self.keys_seen(window)
        if self.room is not None and (window is None or keys < window):
            keys = self.tokens
        return attention_cost.needs_mask(self.backend, self.tokens, keys, window)

    def _make_mask(self, window: int | None) -> None:
        keys = self.keys_seen(window)
        if not self._needs_mask(window):
            return
        outer, self.tape.slot = self.tape.slot, MASK
        mask = self.tape.new(self.tokens * keys, attention_cost.BOOL, "le")
        if self.padded:
            mask = self.tape.new(self.batch * mask.numel, attention_cost.BOOL, "and")
        if self.backend == "eager":
            mask = self.tape.new(self.batch * self.tokens * keys, self.item, "where")
        self.masks[window] = mask
        self.tape.slot = outer

    def _rotary_tables(self, width: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position (``LlamaRotaryEmbedding``)."""
        outer, self.tape.slot = self.tape.slot, INPUTS
        angles = self.tape.new((self.rows if self.padded else self.tokens) * width, FP32, "cat")
        tables = [
            ops.cast(self.tape, self.tape.new(angles.numel, FP32, name), self.item) for name in ("cos", "sin")
        ]
        self.tape.slot = outer
        return tables[0], tables[1]
