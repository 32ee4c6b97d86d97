"""CUDA's autocast and composite operators on the CPU: torch's lists, torch's own casts, and no trace left."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from mem_gpt_cli.trace.cuda.autocast import (
    BANNED,
    FP32_RESULT,
    FP32_RESULT_OVERLOAD,
    LEFT_OUT,
    LOWER_PRECISION,
    WIDEST,
    cuda_autocast_lists,
    listed,
)
from mem_gpt_cli.trace.cuda.composites import composites

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
BESIDE_THE_HEADER = {"cudnn_convolution", "cudnn_convolution_transpose"}
"""Listed in autocast_mode.cpp only."""


def in_header(macro: str) -> set[str]:
    """The operators of one of the lists of the installed torch, but for overloads of named dimensions."""
    found = re.search(
        rf"#define AT_FORALL_{macro}\(_\)(.*?)\n\n", HEADER.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None
    text = re.sub(r"[\\\s]", "", found[1])
    if macro == "DIFFERENT_REDISPATCH_SIGNATURE":
        names = re.findall(r'"([\w.]+)"', text)
    else:
        names = [name.replace(",", ".") for name in re.findall(r"_\(([\w,]+)\)", text)]
    return {name for name in names if "name" not in name.partition(".")[2].lower()}


@pytest.mark.parametrize(
    ("macro", "ours"),
    [
        ("LOWER_PRECISION_FP", LOWER_PRECISION - BESIDE_THE_HEADER),
        ("FP32_SET_OPT_DTYPE", FP32_RESULT),
        ("DIFFERENT_REDISPATCH_SIGNATURE", set(FP32_RESULT_OVERLOAD)),
        ("PROMOTE", WIDEST),
    ],
)
def test_each_list_is_torchs_own(macro: str, ours: set[str]) -> None:
    assert set(ours) == in_header(macro)


def test_all_others_are_cast_to_fp32() -> None:
    named = LOWER_PRECISION | FP32_RESULT | set(FP32_RESULT_OVERLOAD) | WIDEST | BANNED | LEFT_OUT
    assert listed("AutocastCUDA") - named == in_header("FP32")


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def low(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


@contextmanager
def steered(dtype: torch.dtype) -> Iterator[None]:
    with FakeTensorMode(), cuda_autocast_lists(), composites(), torch.autocast("cpu", dtype=dtype):
        yield


def test_what_cuda_casts_otherwise_than_the_cpu(low: torch.dtype) -> None:
    with steered(low):
        half, full = torch.empty(4, 8, dtype=low), torch.empty(4, 8)
        weight = torch.nn.Parameter(torch.empty(8))
        for result in (
            F.layer_norm(half, (8,), weight, weight), half.softmax(-1), half.log_softmax(-1), half.pow(2),
            half.exp(), half.rsqrt(), half.sum(), half.sum(-1), half.cumsum(0), half.prod(), half.norm(),
            half.norm(2, 1), F.softplus(half), F.mse_loss(half, half), half.cross(half[:, :3], 1)
            if half.shape[1] == 3 else half.exp(),
        ):  # fmt: skip
            assert result.dtype == torch.float32
        for result in (
            half + half,
            torch.cat([half, half]),
            torch.stack([half, half]),
            F.gelu(half),
            half.mean(),
        ):
            assert result.dtype == low
        assert torch.cat([half, full]).dtype == torch.float32
        for result in (
            full @ full.T,
            F.linear(full, full),
            torch.einsum("ij,kj->ik", full, full),
            full.mv(weight),
        ):
            assert result.dtype == low
        assert torch.addcmul(full, half, half).dtype == torch.float32
        assert half.softmax(-1, dtype=low).dtype == low
        assert half.double().exp().dtype == torch.float64


def test_the_loss_of_half_logits_casts_late(low: torch.dtype) -> None:
    """``cross_entropy`` asks for its input's dtype, so only ``nll_loss`` casts; CPU casts the logits."""
    with steered(low):
        logits, target = torch.empty(4, 8, dtype=low), torch.empty(4, dtype=torch.long)
        with Operators() as seen:
            F.cross_entropy(logits, target)
    assert seen.lines[0] == f"aten._log_softmax.default {low} (4, 8)"


def test_binary_cross_entropy_is_refused(low: torch.dtype) -> None:
    with steered(low), pytest.raises(RuntimeError, match="unsafe to autocast"):
        F.binary_cross_entropy(torch.empty(4), torch.empty(4))


class Operators(TorchDispatchMode):
    """Lists the operators that make something: name, dtype and shape of the first result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if leaves and not func.is_view and func.namespace == "aten" and "detach" not in str(func):
            self.lines.append(f"{func} {leaves[0].dtype} {tuple(leaves[0].shape)}")
        return result


def dtypes_outside() -> list[torch.dtype]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = torch.ones(2, 2, dtype=torch.bfloat16)
        return [
            half.exp().dtype, F.layer_norm(half, (2,)).dtype, half.softmax(-1).dtype, half.prod().dtype,
            torch.cat([half, half.float()]).dtype, F.cross_entropy(half, torch.tensor([0, 1])).dtype,
        ]  # fmt: skip


def test_no_trace_is_left() -> None:
    before = dtypes_outside()
    with cuda_autocast_lists(), composites():
        assert dtypes_outside() != before
        with cuda_autocast_lists(), composites():
            inner = dtypes_outside()
        assert dtypes_outside() == inner
    assert dtypes_outside() == before


def test_no_trace_is_left_by_an_error() -> None:
    before = dtypes_outside()
    with pytest.raises(KeyError), cuda_autocast_lists(), composites():
        raise KeyError
    assert dtypes_outside() == before


def test_values_are_those_of_torch() -> None:
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    with cuda_autocast_lists(), composites(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(x.softmax(-1), x.float().softmax(-1))
        torch.testing.assert_close(x.sum(), x.float().sum())
        torch.testing.assert_close(x.norm(), x.float().norm())
        torch.testing.assert_close(F.dropout(x, 1.0), torch.zeros_like(x))


def weights_cast(function: Callable[[torch.Tensor, torch.Tensor], Any]) -> int:
    """How often two uses of a weight in autocast cast it."""
    weight, x = torch.nn.Parameter(torch.empty(8, 8)), torch.empty(4, 8, dtype=torch.bfloat16)
    with Operators() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        function(x, weight)
        function(x, weight)
    return sum(line.startswith("aten._to_copy") for line in seen.lines)


def test_a_weight_is_cast_once_until_autocast_ends() -> None:
    with FakeTensorMode(), cuda_autocast_lists():
        assert weights_cast(F.linear) == 1
        assert weights_cast(lambda x, w: torch.einsum("ij,jk->ik", x, w)) == 1
        weight, x = torch.nn.Parameter(torch.empty(8, 8)), torch.empty(8, dtype=torch.bfloat16)
        with Operators() as seen:
            for _ in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    weight.mv(x)
        assert sum(line.startswith("aten._to_copy") for line in seen.lines) == 2


def test_recomputation_in_backward_casts_the_same(low: torch.dtype) -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        return F.dropout(F.layer_norm(F.linear(x, weight), (8,)).softmax(-1), 0.1)

    with FakeTensorMode(), cuda_autocast_lists(), composites():
        weight = torch.nn.Parameter(torch.empty(8, 8))
        x = torch.empty(4, 8, requires_grad=True)
        with Operators() as forward, torch.autocast("cpu", dtype=low):
            result = checkpoint(block, x, use_reentrant=False)
        loss = result.sum()
        with Operators() as backward:
            loss.backward()
    assert forward.lines[-1] == "aten.native_dropout.default torch.float32 (4, 8)"
    recomputed = iter(backward.lines)
    assert all(line in recomputed for line in forward.lines)


def test_half_in_fp32_out_is_one_kernel_and_bf16_is_copied() -> None:
    with FakeTensorMode(), composites(), Operators() as seen:
        for dtype in (torch.float16, torch.bfloat16):
            torch.empty(4, 8, dtype=dtype).softmax(-1, dtype=torch.float32)
            F.log_softmax(torch.empty(4, 8, dtype=dtype), -1, dtype=torch.float32)
    made = [line.split(".")[1] for line in seen.lines if ".empty." not in line]
    assert made == ["_softmax", "_log_softmax", "_to_copy", "_softmax", "_to_copy", "_log_softmax"]


def test_dropout_keeps_a_mask_of_booleans() -> None:
    with FakeTensorMode(), composites(), Operators() as seen:
        x = torch.empty(4, 8, requires_grad=True)
        y = torch.nn.Dropout(0.1)(x)
        assert torch.nn.Dropout(0.1).eval()(x) is x
        assert F.dropout(x, 0.0) is x
        saved = y.grad_fn._saved_result1  # type: ignore[union-attr]
    assert saved.dtype == torch.bool
    assert [line.split()[0] for line in seen.lines[-1:]] == ["aten.native_dropout.default"]


CUDA_BUILD = torch.version.cuda is not None


def block_of(device: str, dtype: torch.dtype) -> list[str]:
    """The operators of a block with attention, norms and a loss, on fake tensors of a device, in autocast."""
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    try:
        with FakeTensorMode(), torch.device(device), Operators() as seen:
            weight, bias = torch.nn.Parameter(torch.empty(64, 64)), torch.nn.Parameter(torch.empty(64))
            x = F.embedding(torch.empty(2, 16, dtype=torch.long), weight)
            x = F.dropout(F.layer_norm(x, (64,), bias, bias), 0.1)
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * bias
            q = F.linear(x, weight, bias).view(2, 16, 4, 16).transpose(1, 2)
            scores = F.softmax(q @ q.mT + torch.empty(16, 16), -1, dtype=torch.float32).to(q.dtype)
            x = x + (F.dropout(scores, 0.1) @ q).transpose(1, 2).reshape(2, 16, 64)
            x = F.silu(F.linear(x, weight)) * torch.addmm(bias, x.view(-1, 64), weight).view_as(x)
            chosen = F.linear(x, weight).softmax(-1).topk(2)[0]
            x = torch.cat([x, x * chosen.sum(-1, keepdim=True)], 1)
            logits = F.linear(x, weight)
            F.cross_entropy(logits.float().view(-1, 64), torch.empty(64, dtype=torch.long))
            F.cross_entropy(logits.view(-1, 64), torch.empty(64, dtype=torch.long))
    finally:
        torch.set_autocast_enabled(device, False)
        torch.clear_autocast_cache()
    return seen.lines


@pytest.mark.skipif(not CUDA_BUILD, reason="this build of torch has no CUDA to compare with")
def test_a_block_runs_the_operators_of_real_cuda_autocast(low: torch.dtype) -> None:
    theirs = block_of("cuda", low)
    with cuda_autocast_lists(), composites():
        assert block_of("cpu", low) == theirs
