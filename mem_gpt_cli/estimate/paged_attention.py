"""Attention over pages: all requests of a step in one row, under the mask that keeps them apart."""

from __future__ import annotations

from dataclasses import dataclass

from mem_gpt_cli.attention.cost import flash_scratch_bytes
from mem_gpt_cli.estimate import attention_ops, ops
from mem_gpt_cli.estimate.books import FP32, SCORES
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.tape import Tape, Tensor
from mem_gpt_cli.model.architecture import Attention


@dataclass(frozen=True)
class Pages:
    """What attention finds in a step: ``keys`` tokens to read, ``past`` of them kept before; the mask."""

    keys: int
    past: int
    mask: Tensor


def read_back(run: Pass, part: Attention, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``FullAttentionCacheAllocator.update``: a batch that finds nothing kept reads nothing back."""
    assert run.pages is not None
    if not run.pages.past:
        return k, v
    return (
        run.tape.new(run.pages.keys * part.kv_heads * part.head_dim, k.item, "index_select"),
        run.tape.new(run.pages.keys * part.kv_heads * part.value_dim, v.item, "index_select"),
    )


def attend_paged(run: Pass, part: Attention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """``integrations/sdpa_attention.py`` and ``eager_paged.py`` of transformers."""
    assert run.pages is not None
    tape, keys, mask = run.tape, run.pages.keys, run.pages.mask
    k, v = read_back(run, part, k, v)
    groups = part.heads // part.kv_heads
    if groups > 1 and (run.backend == "eager" or run.tokens > 1):
        repeat = attention_ops.expand if part.kv_heads == 1 else attention_ops.repeat
        k = repeat(tape, k, groups)
        v = repeat(tape, v, groups)
    if run.backend == "eager":
        return _eager(tape, run, part, (q, k, v), mask)
    rows = run.tokens * part.heads
    if tape.cuda:
        from mem_gpt_cli.estimate.cuda_attention import fused_attention  # other runs start without it

        seen = Tensor(run.tokens * keys, mask.item, mask.storage)
        output = fused_attention(run, part, q, k, v, keys, seen, 0.0)
        assert output is not None, "a kernel that takes a mask takes this one"
        return output, None
    scratch = flash_scratch_bytes(run.threads, run.tokens, keys, part.head_dim)
    return attention_ops.sdpa(tape, (q, k, v), rows, rows * part.value_dim, mask, scratch), None


def _eager(
    tape: Tape, run: Pass, part: Attention, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """``eager_paged_attention_forward``; the softmax is in fp32 whatever the model is held in."""
    assert run.pages is not None
    q, k, v = qkv
    outer, tape.slot = tape.slot, SCORES
    scores = attention_ops.matmul(tape, q, k, part.heads * run.tokens * run.pages.keys, merges=False)
    scores = ops.pointwise(tape, "mul", scores)
    scores = ops.add(tape, scores, mask)
    scores = ops.cast(tape, attention_ops.softmax(tape, scores, FP32), q.item)
    tape.slot = outer
    out = attention_ops.matmul(tape, scores, v, run.tokens * part.heads * part.value_dim, merges=False)
    return out, scores
