"""The books of a run that is only written down: what is live, by what it is for, and when most of it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mem_gpt_cli.allocator.block import Block

FP32 = 4
INT64 = 8
WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2, "none": 0}
"""Bytes of a dtype by its name in a recipe."""

# What the bytes of a report's components are made of: (component, role within it).
SLOTS: tuple[tuple[str, str], ...] = (
    ("weights", "weights"),
    ("kv_cache", "cached keys and values"),
    ("activations", "attention scores"),
    ("activations", "attention"),
    ("activations", "feed-forward"),
    ("activations", "normalisation"),
    ("activations", "residual stream"),
    ("activations", "attention mask"),
    ("activations", "inputs"),
    ("logits", "logits"),
    ("gradients", "gradients"),
    ("optimizer_state", "optimizer state"),
    ("adapters", "adapters"),
    ("activations", "weight casts"),
    ("workspace", "optimizer temporaries"),
    ("workspace", "kernel buffers"),
)
(
    WEIGHTS,
    KV_CACHE,
    SCORES,
    ATTENTION,
    MLP,
    NORM,
    RESIDUAL,
    MASK,
    INPUTS,
    LOGITS,
    GRADIENTS,
    OPTIMIZER_STATE,
    ADAPTERS,
    CASTS,
    OPTIMIZER_TEMPORARIES,
    KERNEL_BUFFERS,
) = range(len(SLOTS))


class Moment(NamedTuple):
    """The books at one instant: bytes by slot, and where in the model the run was."""

    total: int
    live: tuple[int, ...]
    operation: str
    module: str


class Highest(NamedTuple):
    """What a phase has come to at one instant."""

    phase: str
    high: int
    peak: Moment | None
    tops: tuple[int, ...]


class Ledger:
    """Live bytes by slot; for each phase its highest moment, and the most that each slot ever held.

    ``offloaded`` are the most bytes of saved tensors that the host's memory held.
    """

    def __init__(self) -> None:
        self.live = [0] * len(SLOTS)
        self.total = 0
        self.module = ""
        self.offloaded = 0
        self.peaks: dict[str, Moment] = {}
        self.highest: dict[str, list[int]] = {}
        self._phase = ""
        self._high = 0
        self._tops = self.live[:]

    def enter(self, phase: str) -> None:
        """Begin (or return to) a phase; what is live now counts for it."""
        self._phase = phase
        self._high = self.peaks[phase].total if phase in self.peaks else -1
        known = self.highest.get(phase, self.live)
        self._tops = self.highest[phase] = [max(pair) for pair in zip(known, self.live, strict=True)]
        self.note("")

    def allocate(self, slot: int, nbytes: int, operation: str) -> Block | None:
        """Book a storage; on a card the answer is its block."""
        live = self.live[slot] = self.live[slot] + nbytes
        if live > self._tops[slot]:
            self._tops[slot] = live
        self.total += nbytes
        if self.total > self._high:
            self.note(operation)
        return None

    def free(self, slot: int, nbytes: int, block: Block | None = None) -> None:  # noqa: ARG002
        """Take a storage off the books."""
        self.live[slot] -= nbytes
        self.total -= nbytes

    def highest_so_far(self) -> Highest:
        """What is known of the present phase."""
        return Highest(self._phase, self._high, self.peaks.get(self._phase), tuple(self._tops))

    def forget_since(self, before: Highest) -> None:
        """What was live since then was not there after all; it has gone from the books."""
        assert before.phase == self._phase
        self._high, self._tops[:] = before.high, before.tops
        if before.peak is not None:
            self.peaks[self._phase] = before.peak

    def note(self, operation: str) -> None:
        """Take the present moment as the peak of the phase if it is the highest so far."""
        if self.total > self._high:
            self._high = self.total
            self.peaks[self._phase] = Moment(self.total, tuple(self.live), operation, self.module)


class Storage:
    """Bytes that live as long as something refers to them; ``away`` is their copy in the host's memory."""

    __slots__ = ("_block", "_ledger", "away", "nbytes", "slot")

    def __init__(self, ledger: Ledger, slot: int, nbytes: int, operation: str) -> None:
        self._ledger = ledger
        self.slot = slot
        self.away: Storage | None = None
        self.nbytes, self._block = 0, None  # there is nothing to free where the next line runs out of memory
        self._block = ledger.allocate(slot, nbytes, operation)
        self.nbytes = nbytes

    def emptied(self) -> Storage:
        """A storage of no bytes on the same books."""
        return Storage(self._ledger, self.slot, 0, "")

    def __del__(self) -> None:
        self._ledger.free(self.slot, self.nbytes, self._block)
