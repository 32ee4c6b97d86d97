"""Attention by the fused kernels of CUDA."""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.attention.cost import FLASH_CAPABILITY, NO_FLASH
from mem_gpt_cli.attention.on_cuda import CudaKernel, cuda_kernel
from mem_gpt_cli.devices.kernels.attention import Shape
from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.estimate.attention_ops import sdpa_backward
from mem_gpt_cli.estimate.books import FP32, INT64
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.ops import Grads
from mem_gpt_cli.estimate.tape import Node, Tape, Tensor
from mem_gpt_cli.model.architecture import Attention


def fused_attention(
    run: Pass,
    part: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: int,
    mask: Tensor | None,
    dropout: float,
) -> Tensor | None:
    """The output, ``[batch, heads, tokens, width]``, of the kernel that torch picks; ``None``: plain code."""
    tape = run.tape
    assert tape.cuda is not None
    key_heads = k.numel // (run.batch * keys * part.head_dim)
    shape = Shape(run.batch, part.heads, key_heads, run.tokens, keys, part.head_dim, part.value_dim, q.item)
    kernel: CudaKernel = "flash"
    if run.backend == "flash" and tape.cuda.gpu.capability < FLASH_CAPABILITY:
        raise UnsupportedError(NO_FLASH)
    if run.backend != "flash":
        kernel = cuda_kernel(
            tape.cuda.gpu,
            tape.cuda.build,
            shape,
            tape.cuda.dtype if q.item < FP32 else "fp32",
            masked=mask is not None,
            dropout=dropout,
            needs_grad=tape.differentiates((q, k, v)),
        )
    return None if kernel == "math" else _sdpa(tape, kernel, (q, k, v), shape, mask, dropout)


def _sdpa(
    tape: Tape,
    kernel: CudaKernel,
    inputs: tuple[Tensor, Tensor, Tensor],
    shape: Shape,
    mask: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attention by a fused kernel of CUDA, with what it makes beside its output and takes while it runs.

    Without gradients the memory-efficient kernel and cuDNN make no log-sum-exp; that of the former has
    multiples of 32 rows (aten/src/ATen/native/transformers/cuda/attention.cu).
    """
    operation = f"_scaled_dot_product_{kernel}_attention"
    needs_grad = tape.differentiates(inputs)

    def run() -> tuple[Tensor, ...]:
        assert tape.cuda is not None
        states = [tape.new(1, INT64, operation) for _ in range(2)] if kernel == "cudnn" else []
        out = tape.new(shape.output_bytes // shape.item, shape.item, operation)
        rows = -(-shape.queries // 32) * 32 if kernel == "efficient" else shape.queries
        if needs_grad or kernel == "flash":
            states.append(tape.new(shape.batch * shape.heads * rows, FP32, operation))
        tape.buffers(tape.cuda.attention(kernel, shape, dropout), operation)
        return (out, *states)

    # One that draws its dropout itself always runs again: ``checkpointing.selective``.
    out, *states = run() if dropout else tape.kept("attention", run)
    out.permuted = True
    kept = [*inputs, out, *states, *([mask] if mask else ())]

    def backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
        results = sdpa_backward(tape, node, grads)
        lies_by_length = grads[0] is None or grads[0].permuted or shape.heads == 1 or shape.queries == 1
        if tape.cuda:
            copies = 0 if lies_by_length else 1
            buffers = tape.cuda.attention_backward(kernel, shape, copies)
            tape.buffers(buffers, f"{node.operation}_backward")
        return results

    return tape.record(operation, out, inputs, [x.storage for x in kept], backward)
