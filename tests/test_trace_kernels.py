"""Each rule about a kernel's inner buffers, held against the allocator's own account of the real kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mem_gpt_cli.ledger.allocator import record_allocator
from mem_gpt_cli.trace import kernels

aten = torch.ops.aten


def beyond_the_result(run: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that the call takes at its highest beyond what it returns."""
    with record_allocator() as record:
        result = run()
    live = peak = 0
    for event in record.events:
        live += event.nbytes
        peak = max(peak, live)
    tensors = [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, torch.Tensor)]
    return peak - sum(t.untyped_storage().nbytes() for t in tensors), result


SHAPES = [(1, 4, 100, 32), (1, 4, 256, 64), (2, 2, 900, 80), (3, 2, 1, 16), (1, 2, 700, 24)]


@pytest.mark.parametrize(
    ("shape", "threads", "heads_inside"),
    [
        (shape, threads, (number + threads) % 2 == 0)
        for number, shape in enumerate(SHAPES)
        for threads in (1, 2)
    ],
)
def test_flash_attention(shape: tuple[int, ...], threads: int, heads_inside: bool) -> None:
    """``heads_inside``: tensors lie as [batch, length, heads, size], as a model's projections leave them."""
    batch, heads, length, size = shape

    def tensor() -> torch.Tensor:
        if heads_inside:
            return torch.randn(batch, length, heads, size).transpose(1, 2)
        return torch.randn(shape)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        query, key, value, gradient = (tensor() for _ in range(4))
        args = (query, key, value, 0.0, True)
        measured, out = beyond_the_result(lambda: aten._scaled_dot_product_flash_attention_for_cpu(*args))
        assert measured == kernels.flash_attention(args, {}, out)

        backward = (gradient, query, key, value, out[0], out[1], 0.0, True)
        measured, grads = beyond_the_result(
            lambda: aten._scaled_dot_product_flash_attention_for_cpu_backward(*backward)
        )
        assert measured == kernels.flash_attention_backward(backward, {}, grads)
    finally:
        torch.set_num_threads(before)


def test_safe_softmax() -> None:
    scores = torch.randn(2, 4, 64, 96)
    measured, out = beyond_the_result(lambda: aten._safe_softmax(scores, -1))
    assert abs(measured - kernels.safe_softmax((scores, -1), {}, out)) <= 64


def test_layer_norm_backward() -> None:
    hidden, weight, bias = torch.randn(8, 32, 128), torch.randn(128), torch.randn(128)
    out, mean, rstd = aten.native_layer_norm(hidden, [128], weight, bias, 1e-5)
    args = (torch.ones_like(out), hidden, [128], mean, rstd, weight, bias, [True, True, True])
    measured, grads = beyond_the_result(lambda: aten.native_layer_norm_backward(*args))
    assert measured == kernels.layer_norm_backward(args, {}, grads)


@pytest.mark.parametrize("operator", [aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.div.Tensor])
def test_type_promotion_copies_the_narrower_operand(operator: Any) -> None:
    args = (torch.randn(64, 96), torch.randn(64, 96).bfloat16())
    measured, out = beyond_the_result(lambda: operator(*args))
    assert measured == kernels.type_promotion(args, {}, out) == 64 * 96 * 4


def test_type_promotion_in_place_reads_and_writes_apart() -> None:
    narrow, wide = torch.randn(64, 96).bfloat16(), torch.randn(64, 1)
    measured, out = beyond_the_result(lambda: aten.mul_.Tensor(narrow, wide))
    held = out.numel() * out.element_size()  # which was there before
    assert measured + held == kernels.type_promotion((narrow, wide), {}, out) == 2 * 64 * 96 * 4


def test_equal_types_need_no_copy() -> None:
    args = (torch.randn(64, 96), torch.randn(64, 96))
    assert kernels.type_promotion(args, {}, aten.add.Tensor(*args)) == 0


@pytest.mark.parametrize("queries", [1, 2, 29])
@pytest.mark.parametrize("wider", [0, 7])
def test_triangle_of_a_part_of_a_mask(queries: int, wider: int) -> None:
    mask = torch.zeros(1, 1, queries + wider, 40 + wider)
    part = mask[..., :queries, :40]
    measured, result = beyond_the_result(lambda: part.triu_(3))
    inside = measured + result.untyped_storage().nbytes()  # the result is no new tensor
    assert inside == kernels.triangle_in_place((part,), {}, result)
