"""The rules for CUDA's inner buffers, against torch's own host code and against computations by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.devices.kernels.radix_sort import radix_sort_bytes, significant_passes
from mem_gpt_cli.devices.kernels.reductions import reduction_buffers, threads_a_multiprocessor
from mem_gpt_cli.trace.cuda.kernels import RULES, singular_vectors
from mem_gpt_cli.trace.faithful import like_the_real_run
from mem_gpt_cli.trace.linear_cross_entropy import linear_cross_entropy_on_cuda

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "cuda_kernels" / "recorded.json").read_text(encoding="utf-8")
)
CARDS = [card for card in RECORDED if card != "torch"]
H100 = find_gpu("h100")
BLOCK = 512


@pytest.fixture(autouse=True)
def _sizes_alone() -> Iterator[None]:
    with torch.device("meta"), like_the_real_run():
        yield


def operator_of(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def heard(value: Any) -> Any:
    """The inverse of ``cases.spoken``."""
    if isinstance(value, list) and value[:1] == ["T"]:
        return torch.empty_strided(value[1], value[2], dtype=getattr(torch, value[3]))
    if isinstance(value, list):
        return [heard(item) for item in value]
    if isinstance(value, str):
        return getattr(torch, value.removeprefix("torch."))
    return value


def blocks(buffers: list[int]) -> int:
    return sum(-(-nbytes // BLOCK) for nbytes in buffers)


@pytest.mark.parametrize("card", CARDS)
def test_rules_say_what_torch_allocated(card: str) -> None:
    gpu = find_gpu(card)
    wrong = []
    for name, args, kwargs, buffers in RECORDED[card]:
        operator, given = operator_of(name), heard(args)
        rule = RULES.get(operator)
        predicted = list(rule(gpu, given, kwargs, operator(*given, **kwargs))) if rule else []
        if blocks(predicted) != blocks(buffers):
            wrong.append((name, args, buffers, predicted))
    assert not wrong


def test_the_record_is_not_empty_where_rules_are() -> None:
    """Each rule meets a case in which it must say something, but those that are newer than the record."""
    spoken_for = {operator_of(name) for card in CARDS for name, _, _, buffers in RECORDED[card] if buffers}
    named = {RULES[operator] for operator in spoken_for if operator in RULES}
    assert named == set(RULES.values()) - {singular_vectors, linear_cross_entropy_on_cuda}


def test_gradient_of_a_bias_by_hand() -> None:
    """GPT-2's c_attn over 1024 tokens: four columns a thread, 128 threads a block, 32 wide and 4 high.

    Each of 18 columns of blocks takes 128 of the 2304 outputs. A thread has 1024 / 4 = 256 rows, so the rows
    are split 16 ways, to leave a thread 16; each partial result is kept for 32 * 4 places of fp32.
    """
    gradient = torch.empty(1024, 2304)
    assert reduction_buffers(H100, gradient, [0], 4) == [4 * 2304 * 16 * 32 * 4, 4 * 18]


def test_half_of_the_rows_need_no_second_stage() -> None:
    """512 rows leave a thread 128 values, fewer than the 256 from which on blocks share a column."""
    assert reduction_buffers(H100, torch.empty(512, 2304), [0], 4) == []


def test_a_whole_tensor_by_hand() -> None:
    """A loss over 512 * 50257 values: 512 threads of 4 values at once; 132 * 4 blocks are there at a time."""
    assert reduction_buffers(H100, torch.empty(512, 50257), [], 4) == [4 * 132 * 4, 4]


def test_a_row_is_reduced_in_one_block() -> None:
    assert reduction_buffers(H100, torch.empty(8, 50257), [1], 16) == []


def test_beyond_two_gib_nothing_is_said() -> None:
    assert reduction_buffers(H100, torch.empty(2**15, 2**14 + 1), [0], 4) == []


@pytest.mark.parametrize(
    ("name", "threads"), [("h100", 2048), ("a100-80gb", 2048), ("rtx-4090", 1536), ("t4", 1024)]
)
def test_threads_of_a_multiprocessor(name: str, threads: int) -> None:
    assert threads_a_multiprocessor(find_gpu(name)) == threads


def rule(name: str, *args: Any, result: Any = None) -> list[int]:
    return list(RULES[operator_of(name)](H100, args, {}, result))


def test_gradient_of_an_embedding_by_hand() -> None:
    """GPT-2 XL, 8 * 1024 tokens: 8192 words at most, in 8192 / 10 + 8192 stretches, each a row of fp32."""
    tokens = torch.empty(8, 1024, dtype=torch.long)
    stretches = 819 + 8192
    index = 8 * 8192
    expected = [index, index, index, 8, index, index, 8, 8 * stretches, 4 * stretches * 1600]
    gradient = torch.empty(8, 1024, 1600, dtype=torch.bfloat16)
    assert rule("embedding_dense_backward", gradient, tokens, 50257, -1, False) == expected


def test_gradient_of_an_embedding_of_few_tokens() -> None:
    gradient = torch.empty(3, 1024, 4096)
    assert (
        rule("embedding_dense_backward", gradient, torch.empty(3, 1024, dtype=torch.long), 32000, -1, False)
        == []
    )


def test_eager_attention_holds_the_product_in_its_backward() -> None:
    scores = torch.empty(8, 12, 1024, 1024)
    assert rule("_softmax_backward_data", scores, scores, -1, torch.float32) == [8 * 12 * 1024 * 1024 * 4]


def test_adding_up_by_index_by_hand() -> None:
    """1024 tokens of two experts each: below one tile the sort takes nothing."""
    index, table = torch.empty(2048, dtype=torch.long), torch.empty(1024, 512)
    assert rule("index_put", table, [index], torch.empty(2048, 512), True) == [16384] * 4 + [1]


def test_radix_sort_by_hand() -> None:
    """8192 pairs of int64: both again, 8 passes of 256 counters of 8 bytes, two tiles of 256 of 4 bytes."""
    assert radix_sort_bytes(H100, 8192, 8, 8, 8) == 2 * 65536 + 8 * 256 * 8 + 2 * 256 * 4 + 256 + 255
    assert [significant_passes(n) for n in (0, 255, 256, 65535, 65536)] == [1, 1, 2, 2, 3]
