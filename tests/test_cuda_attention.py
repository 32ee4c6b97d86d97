"""Attention on CUDA: which kernel runs and what it allocates, against torch's own host code and by hand."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.trace.cuda import attention_kernels, kernels
from mem_gpt_cli.trace.cuda.births import BIRTHS
from mem_gpt_cli.trace.cuda.sdpa import attention_of
from mem_gpt_cli.trace.cuda.sdpa_choice import build, choose_kernel
from tests.cuda_attention.cases import BACKENDS, Call, Kernel, allocations, choices
from tests.cuda_attention.record import CARDS

aten = torch.ops.aten
RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "cuda_attention" / "recorded.json").read_text(encoding="utf-8")
)
RULES = {**kernels.RULES, **attention_kernels.RULES}
H100, A100, RTX4090, T4 = (find_gpu(name) for name in ("h100", "a100-80gb", "rtx-4090", "t4"))
BLOCK = 512


class Blocks(TorchDispatchMode):
    """Notes the blocks that come and go: storages of results, and what the rules say of inner buffers."""

    def __init__(self, gpu: Gpu, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.gpu = gpu
        self.events: list[int] = []
        self.operators: list[Any] = []
        self._watched: dict[int, Any] = {}
        for tensor in known:
            self._note(tensor)
        self.events.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        self.operators.append(func)
        results = result if isinstance(result, (tuple, list)) else [result]
        births = BIRTHS[func](args, result) if func in BIRTHS else ((item, None) for item in results)
        for item, nbytes in births:
            if isinstance(item, torch.Tensor) and nbytes != 0:
                self._note(item)
        inner = RULES[func](self.gpu, args, kwargs, result) if func in RULES else ()
        self.events += [*inner, *(-nbytes for nbytes in inner)]
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._watched or nbytes == 0:
            return

        def free(_: Any) -> None:
            del self._watched[key]
            self.events.append(-nbytes)

        self.events.append(nbytes)
        self._watched[key] = weakref.ref(storage, free)


def rounded(nbytes: int) -> int:
    return -(-nbytes // BLOCK) * BLOCK


def peak_and_rest(events: list[int]) -> tuple[int, int]:
    """The most that blocks take, and what they take in the end."""
    peak = now = 0
    for nbytes in events:
        now += rounded(nbytes) if nbytes > 0 else -rounded(-nbytes)
        peak = max(peak, now)
    return peak, now


def run_dry(gpu: Gpu, kernel: Kernel, call: Call) -> list[list[int]]:
    """The events of forward and backward, as ``cuda_attention.play`` records them."""
    with FakeTensorMode(), attention_of(gpu), sdpa_kernel(BACKENDS[kernel]):
        tensors, mask = call.tensors("cpu"), call.mask_tensor("cpu")
        wanted = [*tensors, *([mask] if mask is not None else [])]
        with Blocks(gpu, wanted) as blocks:
            output = torch.nn.functional.scaled_dot_product_attention(
                *tensors, mask, call.dropout, call.is_causal, enable_gqa=call.groups
            )
            forward = list(blocks.events)
            if not call.trains:
                return [forward]
            like = torch.contiguous_format if call.gradient_by_heads else torch.preserve_format
            gradient = torch.empty_like(output, memory_format=like)
            blocks.events.clear()
            gradients = torch.autograd.grad(output, wanted if call.mask_trains else tensors, gradient)
            del gradients
            return [forward, blocks.events]


@pytest.mark.parametrize("card", CARDS)
def test_the_kernel_that_torch_chooses(card: str) -> None:
    gpu, recorded = find_gpu(card), RECORDED[card]
    made_by = build(recorded["torch"])
    wrong = []
    for call, letter in zip(choices(), recorded["choices"], strict=True):
        chosen = choose_kernel(
            gpu,
            *call.tensors("meta"),
            call.mask_tensor("meta"),
            call.dropout,
            call.is_causal,
            call.groups,
            call.trains,
            made_by=made_by,
        )
        if chosen[0] != letter:
            wrong.append((call, chosen, letter))
    assert not wrong


def test_the_recording_meets_every_kernel() -> None:
    assert Counter(RECORDED["h100"]["choices"]).keys() == set("fecm")
    assert Counter(RECORDED["a100-80gb"]["choices"]).keys() == set("fem")
    assert Counter(RECORDED["t4"]["choices"]).keys() == set("em")


@pytest.mark.parametrize("card", CARDS)
def test_what_torch_allocates(card: str) -> None:
    gpu, recorded = find_gpu(card), RECORDED[card]["allocations"]
    for (kernel, call), truth in zip(allocations(CARDS[card]), recorded, strict=True):
        passes = run_dry(gpu, kernel, call)
        assert len(passes) == len(truth)
        for events, expected in zip(passes, truth, strict=True):
            born = [[rounded(nbytes) for nbytes in side if nbytes > 0] for side in (events, expected)]
            assert peak_and_rest(without_old(events))[0] == peak_and_rest(without_old(expected))[0], call
            if kernel != "efficient":  # its rule leaves out what is gone before the operator's peak
                assert Counter(born[0]) == Counter(born[1]), (kernel, call)


def without_old(events: list[int]) -> list[int]:
    """The events but for the freeing of blocks from before, which may come at any time."""
    alive: Counter[int] = Counter()
    kept = []
    for nbytes in events:
        if nbytes > 0:
            alive[nbytes] += 1
        elif alive[-nbytes]:
            alive[-nbytes] -= 1
        else:
            continue
        kept.append(nbytes)
    return kept


def sample(
    heads: int, key_heads: int, size: int, queries: int, keys: int, dtype: torch.dtype = torch.bfloat16
) -> list[torch.Tensor]:
    shapes = ((queries, heads), (keys, key_heads), (keys, key_heads))
    return [torch.empty(1, n, h, size, dtype=dtype, device="meta").transpose(1, 2) for n, h in shapes]


def test_splits_of_flash_by_hand() -> None:
    """A100: 216 half multiprocessors. GPT-2, one query over 1,000 keys: 12 blocks, 4 blocks of 256 keys."""
    forward = attention_kernels.flash_forward
    assert forward(A100, tuple(sample(12, 12, 64, 1, 1000)), {}, None) == [4 * 12 * 4, 4 * 12 * 64 * 4]
    # Llama 3 8B: 8 key heads with 4 queries each are 8 blocks of 4 rows; 1,000 keys are 8 blocks of 128.
    assert forward(A100, tuple(sample(32, 8, 128, 1, 1000)), {}, None) == [8 * 32 * 4, 8 * 32 * 128 * 4]
    # 12 heads of 1,000 queries are 192 blocks of 64 rows: more than 80% of 216.
    assert forward(A100, tuple(sample(12, 12, 64, 1000, 1000)), {}, None) == []


def test_backward_of_flash_by_hand() -> None:
    query, key, value = sample(32, 8, 128, 1000, 1000)
    args = (query, query, key, value, query)
    expected = [32 * 1024 * 4, 32 * 1024 * 128 * 4, 32 * 1000 * 128 * 2, 32 * 1000 * 128 * 2]
    assert attention_kernels.flash_backward(A100, args, {}, None) == expected
    query, key, value = sample(4, 4, 80, 130, 130)  # 80 is rounded up to 96, 130 to 256
    expected = [4 * 256 * 4, 4 * 256 * 96 * 4]
    assert attention_kernels.flash_backward(A100, (query, query, key, value, query), {}, None) == expected


@pytest.mark.parametrize(
    ("gpu", "dtype", "size", "expected"),
    [
        # Tiles of 64 x 64 numbers and a lock of 16 bytes, 16 rows of them, for each of 12 heads.
        (H100, torch.bfloat16, 64, [12 * 1000 * 4, 12 * 16 * (64 * 64 + 4) * 4]),
        # Tiles of 128 x 128: 8 rows of one.
        (H100, torch.bfloat16, 128, [12 * 1000 * 4, 12 * 8 * (128 * 128 + 4) * 4]),
        # Too large for the shared memory of this one: 16 x 2 tiles of 64 x 64, and gradients of keys and
        # values staged for 200 // 12 = 16 splits of 64 keys.
        (
            RTX4090, torch.bfloat16, 128,
            [12 * 1000 * 4, 12 * (2 * 16 * 64 * 128 + 32 * (64 * 64 + 4)) * 4],
        ),
        # Turing has 128 x 64 tiles for heads up to 128, with gradients in registers.
        (T4, torch.float16, 128, [12 * 1000 * 4, 12 * 8 * 2 * (128 * 64 + 4) * 4]),
        # fp32: gradient times output, its row sums, and these laid out anew, are less than the workspace ...
        (H100, torch.float32, 64, [12 * 1000 * 4, 12 * 16 * (64 * 64 + 4) * 4]),
    ],
)  # fmt: skip
def test_backward_of_the_efficient_kernel_by_hand(
    gpu: Gpu, dtype: torch.dtype, size: int, expected: list[int]
) -> None:
    query, key, value = sample(12, 12, size, 1000, 1000, dtype)
    args = (query, query, key, value, None, query)
    assert attention_kernels.efficient_backward(gpu, args, {}, None) == expected


def test_summing_rows_may_take_more_than_the_kernel() -> None:
    """With 65 rows in fp32 the product has 65 x 64 numbers, and two tiles have 2 x (64 x 64 + 4)."""
    query, key, value = sample(12, 12, 64, 64, 64, torch.float32)
    args = (query, query, key, value, None, query)
    product, sums = 12 * 64 * 64 * 4, 12 * 64 * 4
    assert attention_kernels.efficient_backward(H100, args, {}, None) == [product, sums, sums]


def test_versions_of_torch() -> None:
    for version in ("2.11.0+cu130", "2.12.0", "2.13.0+cpu"):
        assert build(version).trusts_cudnn
    query, key, value = sample(12, 12, 64, 100, 100)
    chosen = [
        choose_kernel(H100, query, key, value, None, 0.1, True, False, True, made_by=build(version))
        for version in ("2.11.0", "2.12.0", "2.13.0")
    ]
    assert chosen == ["cudnn", "flash", "flash"]


def test_what_is_switched_off_does_not_run() -> None:
    query, key, value = sample(12, 12, 64, 100, 100)
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        assert choose_kernel(H100, query, key, value, None, 0.0, True, False, True) == "efficient"
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError, match="No available kernel"):
        choose_kernel(T4, query, key, value, None, 0.0, True, False, True)


def operators_of(gpu: Gpu, dtype: torch.dtype, autocast: bool = False, recompute: bool = False) -> list[Any]:
    with FakeTensorMode(), attention_of(gpu), Blocks(gpu, []) as blocks:
        tensors = [torch.empty(2, 4, 16, 64, dtype=dtype, requires_grad=True) for _ in range(3)]

        def attend(*tensors: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True)

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = checkpoint(attend, *tensors, use_reentrant=False) if recompute else attend(*tensors)
        output.sum().backward()
        assert all(tensor.grad is not None and tensor.grad.dtype == dtype for tensor in tensors)
        return blocks.operators


def test_autocast_lowers_what_attention_reads() -> None:
    operators = operators_of(A100, torch.float32, autocast=True)
    assert aten._scaled_dot_product_flash_attention.default in operators
    assert aten._scaled_dot_product_efficient_attention.default in operators_of(A100, torch.float32)


def test_a_checkpoint_recomputes_with_the_same_kernel() -> None:
    operators = operators_of(H100, torch.bfloat16, recompute=True)
    assert operators.count(aten._scaled_dot_product_cudnn_attention.default) == 2
    assert operators.count(aten._scaled_dot_product_cudnn_attention_backward.default) == 1


def test_the_function_is_given_back() -> None:
    before = torch.nn.functional.scaled_dot_product_attention
    with attention_of(H100):
        assert torch.nn.functional.scaled_dot_product_attention is not before
    assert torch.nn.functional.scaled_dot_product_attention is before


def test_another_build_than_the_one_here() -> None:
    tensors = sample(12, 12, 64, 100, 100)
    for version, operator in (
        ("2.11.0", aten._scaled_dot_product_cudnn_attention.default),
        ("2.12.0", aten._scaled_dot_product_flash_attention.default),
    ):
        with attention_of(H100, build(version)), Blocks(H100, []) as blocks:
            torch.nn.functional.scaled_dot_product_attention(*tensors, dropout_p=0.1)
        assert operator in blocks.operators
