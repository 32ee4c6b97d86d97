"""cuBLAS's workspaces and copies of operands, at the sizes that torch's own host code allocates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.devices.kernels.cublas import lt_workspace_bytes, workspace_bytes
from mem_gpt_cli.trace.cuda.blas import BlasBuffers, BlasWorkspaces

aten = torch.ops.aten
H100 = find_gpu("h100")
HOPPER, LT, OTHERS = 32 * 2**20, 2**20, 8_519_680


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call(
    blas: BlasWorkspaces, func: Any, *args: Any, in_backward: bool = False, **kwargs: Any
) -> BlasBuffers:
    return blas(func, args, kwargs, func(*args, **kwargs), in_backward)


@pytest.fixture
def blas() -> BlasWorkspaces:
    return BlasWorkspaces(H100, {})


@pytest.mark.parametrize(
    ("card", "nbytes"), [("h100", HOPPER), ("h200", HOPPER), ("a100-80gb", OTHERS), ("rtx-4090", OTHERS)]
)
def test_the_size_by_generation(card: str, nbytes: int) -> None:
    assert workspace_bytes(find_gpu(card), {}) == nbytes


@pytest.mark.parametrize(
    ("config", "nbytes"),
    [(":4096:8", 32 * 2**20), (":16:8:4096:2", OTHERS), (":0:0", 0), ("nonsense", HOPPER)],
)
def test_the_environment_sets_the_size(config: str, nbytes: int) -> None:
    assert workspace_bytes(H100, {"CUBLAS_WORKSPACE_CONFIG": config}) == nbytes


def test_cublaslt_has_its_own_unless_told_to_share() -> None:
    assert lt_workspace_bytes({}) == LT
    assert lt_workspace_bytes({"CUBLASLT_WORKSPACE_SIZE": "4096"}) == 4 * LT
    assert lt_workspace_bytes({"CUBLASLT_WORKSPACE_SIZE": "much"}) == LT
    assert lt_workspace_bytes({"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "1"}) is None
    assert lt_workspace_bytes({"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "0"}) == LT


def test_the_first_product_of_a_thread_brings_a_workspace(blas: BlasWorkspaces) -> None:
    a, b = empty(1024, 768), empty(768, 3072)
    assert call(blas, aten.mm.default, a, b) == BlasBuffers(lasting=(HOPPER,))
    assert call(blas, aten.mm.default, a, b) == BlasBuffers()
    assert call(blas, aten.bmm.default, empty(2, 8, 8), empty(2, 8, 8)) == BlasBuffers()
    assert call(blas, aten.mm.default, a, b, in_backward=True) == BlasBuffers(lasting=(HOPPER,))
    assert call(blas, aten.mm.default, a, b, in_backward=True) == BlasBuffers()


def test_a_bias_in_the_kernel_brings_cublaslts(blas: BlasWorkspaces) -> None:
    """GPT-2's c_fc, first as the run's first product, then in a checkpoint's recomputation."""
    c_fc = empty(3072), empty(1024, 768), empty(768, 3072)
    assert call(blas, aten.addmm.default, *c_fc) == BlasBuffers(lasting=(HOPPER, LT))
    assert call(blas, aten.addmm.default, *c_fc, in_backward=True) == BlasBuffers(lasting=(HOPPER, LT))
    assert call(blas, aten.addmm.default, *c_fc) == BlasBuffers()


def test_without_a_workspace_nothing_is_born() -> None:
    blas = BlasWorkspaces(H100, {"CUBLAS_WORKSPACE_CONFIG": ":0:0"})
    assert call(blas, aten.mm.default, empty(8, 8), empty(8, 8)) == BlasBuffers()


@pytest.mark.parametrize(
    ("bias", "kwargs"),
    [
        (empty(16, 3072), {}),  # no vector
        (empty(3072), {"beta": 0.5}),
        (empty(6144)[::2], {}),  # no dense vector
        (empty(1), {}),  # a number for all columns
    ],
)
def test_other_biases_are_copied_into_the_result(
    blas: BlasWorkspaces, bias: torch.Tensor, kwargs: dict[str, float]
) -> None:
    args = bias, empty(16, 768), empty(768, 3072)
    assert call(blas, aten.addmm.default, *args, **kwargs) == BlasBuffers(lasting=(HOPPER,))


@pytest.mark.parametrize(
    ("bias", "rows"),
    [(empty(1, 3072), 16), (empty(3072), 1)],  # a row; a single token, as in decoding
)
def test_other_vectors_go_to_cublaslt(blas: BlasWorkspaces, bias: torch.Tensor, rows: int) -> None:
    args = bias, empty(rows, 768), empty(768, 3072)
    assert call(blas, aten.addmm.default, *args).lasting == (HOPPER, LT)


@pytest.mark.parametrize(("inner", "columns"), [(1, 3072), (768, 1)])
def test_a_vector_as_second_operand_does_not(blas: BlasWorkspaces, inner: int, columns: int) -> None:
    args = empty(columns), empty(16, inner), empty(inner, columns)
    assert call(blas, aten.addmm.default, *args).lasting == (HOPPER,)


def test_transposes_and_slices_are_read_in_place(blas: BlasWorkspaces) -> None:
    qkv = empty(1024, 3 * 768)
    call(blas, aten.mm.default, empty(8, 8), empty(8, 8))
    assert call(blas, aten.mm.default, qkv[:, :768], empty(3072, 768).t()) == BlasBuffers()
    heads = empty(4, 128, 12, 64).transpose(1, 2).flatten(0, 1)
    assert call(blas, aten.bmm.default, heads, heads.transpose(1, 2)) == BlasBuffers()
    assert call(blas, aten.bmm.default, empty(1, 8, 8).expand(4, 8, 8), empty(4, 8, 8)) == BlasBuffers()


def test_operands_with_holes_are_copied_second_first(blas: BlasWorkspaces) -> None:
    """The result lies in rows and cuBLAS thinks in columns, so that the operands swap."""
    call(blas, aten.mm.default, empty(8, 8), empty(8, 8))
    holes, more = empty(64, 32, 2)[..., 0], empty(32, 16, 2)[..., 0]
    assert call(blas, aten.mm.default, holes, more).transient == (32 * 16 * 4, 64 * 32 * 4)
    batch = empty(8, 64, 64, 2, dtype=torch.bfloat16)[..., 0]
    dense = torch.empty_like(batch, memory_format=torch.contiguous_format)
    assert call(blas, aten.bmm.default, batch, dense).transient == (8 * 64 * 64 * 2,)
    repeated = empty(8, 1, 64, dtype=torch.bfloat16).expand(8, 64, 64)
    assert call(blas, aten.bmm.default, repeated, batch).transient == (8 * 64 * 64 * 2,) * 2


def test_what_is_no_product_takes_nothing(blas: BlasWorkspaces) -> None:
    assert call(blas, aten.add.Tensor, empty(8), empty(8)) == BlasBuffers()
    assert call(blas, aten.mm.default, empty(0, 8), empty(8, 8)) == BlasBuffers()
