"""Which kernel ``scaled_dot_product_attention`` runs on a GPU.

The conditions are those of ``select_sdp_backend`` in ATen/native/transformers/cuda/sdp_utils.cpp and of the
checks in ATen/native/transformers/sdp_utils_cpp.h, for dense tensors. What differs between versions of torch,
or hangs on the version of cuDNN, is a field of ``Build``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.build import Build, build_of, prefers_cudnn

Kernel = Literal["flash", "efficient", "cudnn", "math"]

FLASH_HEAD_SIZE = 256
HALF = (torch.float16, torch.bfloat16)
_DEFAULT_ORDER = ("flash", "efficient", "math", "cudnn")


@cache
def build(version: str = torch.__version__) -> Build:
    """The facts of a version of torch, by default of this one, taken to be what runs on the GPU too."""
    return build_of(version)


@dataclass(frozen=True)
class Attention:
    """One call of scaled_dot_product_attention: ``sdp_params`` of torch, with the GPU it would run on.

    Args:
        query: shape ``[batch, heads, length, head size]``, as key and value with their own heads and lengths.
        mask: what is added to the scores, or says which count; ``None`` without one.
        needs_grad: whether gradients are recorded and query, key or value requires one.
    """

    gpu: Gpu
    build: Build
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    dropout: float
    is_causal: bool
    enable_gqa: bool
    needs_grad: bool

    @property
    def head_sizes(self) -> tuple[int, int, int]:
        """Of query, key and value."""
        return self.query.shape[-1], self.key.shape[-1], self.value.shape[-1]


def choose_kernel(
    gpu: Gpu,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    is_causal: bool,
    enable_gqa: bool,
    needs_grad: bool,
    allowed: frozenset[Kernel] | None = None,
    made_by: Build | None = None,
) -> Kernel:
    """The kernel that CUDA runs for this call.

    Args:
        allowed: the kernels that are switched on; by default what ``torch.nn.attention.sdpa_kernel`` and
            ``torch.backends.cuda.enable_*_sdp`` say, which a build without CUDA keeps too.
        made_by: the build of torch, by default the running version's build for CUDA 13.

    Raises:
        RuntimeError: when no kernel that is switched on can run, as torch does.
    """
    made_by = made_by or build()
    call = Attention(gpu, made_by, query, key, value, mask, dropout, is_causal, enable_gqa, needs_grad)
    switched_on = _switched_on() if allowed is None else allowed
    for kernel in _order(gpu, made_by):
        if kernel in switched_on and _CAN_RUN[kernel](call):
            return kernel
    raise RuntimeError("No available kernel. Aborting execution.")


def _order(gpu: Gpu, made_by: Build) -> tuple[Kernel, ...]:
    """The order in which kernels are tried: one that was set by hand, else ``priority_order``."""
    names: dict[int, Kernel] = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
    order = tuple(names[number] for number in torch._C._get_sdp_priority_order() if number in names)
    if order == _DEFAULT_ORDER and prefers_cudnn(gpu, made_by):
        return ("cudnn", "flash", "efficient", "math")
    return order


def _switched_on() -> frozenset[Kernel]:
    flags: dict[Kernel, bool] = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
    }
    return frozenset(kernel for kernel, on in flags.items() if on)


def _flash_can_run(call: Attention) -> bool:
    """Source: ``can_use_flash_attention``."""
    length_q, length_k = call.query.shape[-2], call.key.shape[-2]
    return (
        _are_four_dimensional(call)
        and call.mask is None
        and len(set(call.head_sizes)) == 1
        and call.head_sizes[0] <= FLASH_HEAD_SIZE
        and (8, 0) <= call.gpu.capability <= (12, 1)
        and _flash_backward_fits(call)
        and not (call.is_causal and length_q != length_k)
        and _has_dtype(call, HALF)
        and _heads_match(call, shares_keys=True)
        and _has_keys(call)
        and _last_dimension_is_dense(call, ignore_single=True)
    )


def _flash_backward_fits(call: Attention) -> bool:
    """Too little shared memory for the backward of wide heads.

    Source: ``check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120``.
    """
    small = (8, 6) <= call.gpu.capability <= (8, 9) or (12, 0) <= call.gpu.capability <= (12, 1)
    size = call.head_sizes[0]
    return not (small and call.needs_grad) or size <= 192 or (size > 224 and call.dropout == 0)


def _efficient_can_run(call: Attention) -> bool:
    """Source: ``can_use_mem_efficient_attention``."""
    modern = call.gpu.capability >= (8, 0)
    dtypes = (torch.float16, torch.float32, torch.bfloat16) if modern else (torch.float16, torch.float32)
    step = efficient_alignment(call.gpu, call.query.dtype)
    size_q, size_k, size_v = call.head_sizes
    return (
        (5, 0) <= call.gpu.capability <= (12, 1)
        and _are_four_dimensional(call)
        and size_q == size_k
        and all(size > 0 and size % step == 0 for size in (size_q, size_v))
        and _has_keys(call)
        and _last_dimension_is_dense(call, ignore_single=False)
        and _heads_match(call, shares_keys=call.build.efficient_shares_keys)
        and _has_dtype(call, dtypes)
    )


def efficient_alignment(gpu: Gpu, dtype: torch.dtype) -> int:
    """Elements that a head's size must divide by, for tensor cores. Source: ``minimum_gemm_alignment``."""
    half = dtype in HALF
    alignment = 4 if gpu.capability >= (8, 0) else 1
    if gpu.capability >= (8, 0) or (gpu.capability >= (7, 0) and half):
        alignment = max(alignment, 8 if half else 4)
    return alignment


def _cudnn_can_run(call: Attention) -> bool:
    """Source: ``can_use_cudnn_attention`` and ``check_cudnn_tensor_shapes``, for cuDNN 9.14 and newer."""
    modern = call.gpu.capability >= (8, 0)
    return (
        _are_four_dimensional(call)
        and not (
            torch.are_deterministic_algorithms_enabled()
            and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        and _has_dtype(call, HALF if modern else (torch.float16,))
        and _cudnn_takes_mask(call)
        and (8, 0) <= call.gpu.capability <= (12, 1)
        and _has_keys(call)
        and _last_dimension_is_dense(call, ignore_single=True)
        and _heads_match(call, shares_keys=True, keys_like_values=False)
        and _cudnn_takes_shapes(call)
    )


def _cudnn_takes_mask(call: Attention) -> bool:
    """Source: ``check_attn_mask_shape``."""
    mask, query, key = call.mask, call.query, call.key
    if mask is None:
        return True
    if (
        mask.requires_grad
        or mask.shape[-2] not in (1, query.shape[2])
        or mask.shape[-1] not in (1, key.shape[2])
    ):
        return False
    if mask.dim() == 2:
        return True
    return mask.dim() == 4 and mask.shape[0] in (1, query.shape[0]) and mask.shape[1] in (1, query.shape[1])


def _cudnn_takes_shapes(call: Attention) -> bool:
    """Source: ``check_cudnn_tensor_shapes`` and ``check_cudnn_dropout``."""
    size, _, size_v = call.head_sizes
    return (
        max(size, size_v) <= _cudnn_head_size(call)
        and size % 8 == 0
        and size_v % 8 == 0
        and call.key.shape[2] != 1
        and not (call.dropout > 0 and call.query.shape[2] == 1)
        and not (call.build.cudnn_dropout_in_sixteenths and (call.dropout * 16) % 1)
    )


def _cudnn_head_size(call: Attention) -> int:
    """The largest head, with an exception on Blackwell for the sizes of DeepSeek."""
    if call.gpu.capability == (9, 0):
        return 256
    size, _, size_v = call.head_sizes
    return 192 if call.gpu.capability[0] == 10 and (size, size_v) == (192, 128) else 128


def _math_can_run(_: Attention) -> bool:
    return True


def _are_four_dimensional(call: Attention) -> bool:
    return call.query.dim() == call.key.dim() == call.value.dim() == 4


def _has_dtype(call: Attention, dtypes: tuple[torch.dtype, ...]) -> bool:
    return call.query.dtype == call.key.dtype == call.value.dtype and call.query.dtype in dtypes


def _has_keys(call: Attention) -> bool:
    """Source: ``check_nonzero_sequence_lengths_dense``."""
    return call.query.shape[-2] > 0 and call.key.shape[-2] > 0


def _last_dimension_is_dense(call: Attention, *, ignore_single: bool) -> bool:
    """Source: ``check_last_dim_stride_equals_1_dense``."""
    dense = all(tensor.stride(-1) == 1 for tensor in (call.query, call.key, call.value))
    if ignore_single and call.query.shape[-1] == 1:
        dense = True
    return dense and (call.mask is None or call.mask.stride(-1) == 1)


def _heads_match(call: Attention, *, shares_keys: bool, keys_like_values: bool = True) -> bool:
    """Source: ``check_batch_size_and_num_heads_dense`` and ``check_grouped_query_attention``."""
    if not call.query.shape[0] == call.key.shape[0] == call.value.shape[0]:
        return False
    heads, heads_k, heads_v = (tensor.shape[-3] for tensor in (call.query, call.key, call.value))
    if not (call.enable_gqa and shares_keys):
        return heads == heads_k == heads_v
    if keys_like_values and heads_k != heads_v:
        return False
    return heads % heads_k == 0 and (keys_like_values or heads % heads_v == 0)


_CAN_RUN: dict[Kernel, Callable[[Attention], bool]] = {
    "flash": _flash_can_run,
    "efficient": _efficient_can_run,
    "cudnn": _cudnn_can_run,
    "math": _math_can_run,
}
