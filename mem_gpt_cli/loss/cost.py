"""What a loss takes beside the model: how its chunks are cut, and the bytes that they hold.

Sources: torch 2.13, torch/nn/modules/linear_cross_entropy_options.py (how chunks are cut) and
linear_cross_entropy.py (``_ChunkContext``, ``_linear_cross_entropy_batch_chunked_accumulator``).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

DEFAULT_CHUNK = 512
"""Rows of logits at once where a recipe leaves them open."""
FP32 = 4
INT64 = 8
_ITEMS = {"fp32": FP32, "bf16": 2, "fp16": 2}

Policy = Literal["accurate", "compact"]


def chunk_rows(rows: int, chunk: int) -> list[int]:
    """How ``rows`` positions are cut: chunks of that many, and what is left."""
    return [min(chunk, rows - first) for first in range(0, rows, chunk)]


class FusedPlan(NamedTuple):
    """How torch cuts and computes: ``rows`` at once; ``widens`` says that it adds up in fp32."""

    rows: int
    policy: Policy
    widens: bool


def fused_plan(device: str, item: int, rows: int, hidden: int, vocab: int) -> FusedPlan:
    """What ``LinearCrossEntropyOptions()`` chooses for operands of ``item`` bytes an element.

    A chunk's logits are as large as the input, or half as large: ``chunking_method="aspect_ratio[:2]"``.
    """
    widens = item < FP32
    accurate = widens and device == "cpu"
    share = -(-rows // -(-vocab // hidden))
    power = 1 << (share - 1).bit_length()
    at_once = max(1, min(power // (1 if accurate else 2), rows))
    return FusedPlan(at_once, "accurate" if accurate else "compact", widens)


class Fused(NamedTuple):
    """One call of ``linear_cross_entropy``.

    ``rows`` hidden states, ``hidden`` wide, of ``dtype`` (fp32, bf16 or fp16), meet a matrix of ``vocab``
    rows; ``trains_matrix`` says whether that gets a gradient, ``biased`` whether it has a bias, which then
    gets one too.
    """

    device: str
    dtype: str
    rows: int
    hidden: int
    vocab: int
    trains_matrix: bool = True
    biased: bool = False

    @property
    def item(self) -> int:
        """Bytes an element of the operands."""
        return _ITEMS[self.dtype]

    @property
    def plan(self) -> FusedPlan:
        """How torch cuts it."""
        return fused_plan(self.device, self.item, self.rows, self.hidden, self.vocab)

    @property
    def gradients(self) -> tuple[int, int, int]:
        """Bytes of the gradients of hidden states, matrix and bias, which wait for backward."""
        bias = self.item * self.vocab if self.biased and self.trains_matrix else 0
        matrix = self.item * self.vocab * self.hidden if self.trains_matrix else 0
        return self.item * self.rows * self.hidden, matrix, bias

    @property
    def inside_bytes(self) -> int:
        """What is there beside the results when the operator needs the most.

        Where the hidden states' gradient is added up in fp32, its result is made at the end, when what comes
        and goes with a chunk has gone.
        """
        late = self.gradients[0] if self._adds_hidden_in_fp32 else 0
        return max(sum(self._held) + sum(self._passing) - late, sum(self._held))

    @property
    def inside(self) -> list[int]:
        """The buffers of ``inside_bytes`` one by one, in their order, on CUDA."""
        return [*self._held, *self._passing]

    @property
    def _adds_hidden_in_fp32(self) -> bool:
        return self.plan.widens and self.plan.policy == "accurate"

    @property
    def _logits_item(self) -> int:
        """``compact`` leaves fp16's logits as narrow as they are; else they are fp32."""
        return self.item if self.dtype == "fp16" and self.plan.policy == "compact" else FP32

    @property
    def _held(self) -> list[int]:
        """What lives as long as the call: a chunk of logits, a number for each row of it, the fp32 copies and
        sums where operands are narrower, and per position a mask, a label and a weight.
        """
        plan, matrix = self.plan, self.vocab * self.hidden
        on_cpu = self.device == "cpu"
        sizes = [plan.rows * self.vocab * self._logits_item, plan.rows * self._logits_item]
        if self._adds_hidden_in_fp32:
            sizes.append(self.rows * self.hidden * FP32)
        if plan.widens and on_cpu:
            sizes += [matrix * FP32] * (2 if self.trains_matrix else 1)
        if plan.widens and (on_cpu or self.trains_matrix):
            sizes.append(plan.rows * self.hidden * FP32)
        if plan.widens and self.biased:
            sizes += [self.vocab * FP32] * (2 if self.trains_matrix else 1)
        return [*sizes, self.rows, self.rows * INT64, self.rows * FP32]

    @property
    def _passing(self) -> list[int]:
        """What comes and goes with a chunk: its denominators, on CUDA its logits narrowed, and the largest of
        what is there by turns: the rows of the matrix that its labels name, the sum that the bias's gradient
        is, and on a CPU both operands in fp32 where an fp32 gradient is added to a narrower one.
        """
        plan = self.plan
        sizes = [plan.rows * FP32]
        if self._logits_item > self.item and plan.policy == "compact":
            sizes.append(plan.rows * self.vocab * self.item)
        picked = plan.rows * self.hidden * (FP32 if self._adds_hidden_in_fp32 else self.item)
        summed = self.vocab * FP32 if self.biased and self.trains_matrix else 0
        added = 2 * FP32 * self.vocab * self.hidden if plan.policy == "accurate" and self.trains_matrix else 0
        return [*sizes, max(picked, summed, added)]
