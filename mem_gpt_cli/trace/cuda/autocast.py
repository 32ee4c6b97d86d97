"""CUDA's autocast for operators that run on the CPU.

``torch.autocast("cpu")`` casts by other lists than ``torch.autocast("cuda")``: there, ``layer_norm``, ``pow``
and ``softmax`` give fp32, ``cat`` is left alone, and a sum reads half and writes fp32 without a copy. A dry
run of CUDA needs CUDA's lists.

Which operators CUDA lists is asked of the dispatcher, so that the lists are those of the installed torch.
How each is cast is written down here as in ATen/autocast_mode.h (``AT_FORALL_LOWER_PRECISION_FP`` and the
lists after it) and done as by the ``WrapFunction_`` of each policy there; who is in none of the lists here is
cast to fp32.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.library import fallthrough_kernel
from torch.utils._pytree import tree_leaves, tree_map_only

from mem_gpt_cli.trace.cuda.dispatcher import kernels

LOWER_PRECISION = frozenset(
    (
        *("_convolution", "_convolution.deprecated", "convolution", "conv1d", "conv2d", "conv3d", "conv_tbc"),
        *("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input", "prelu"),
        *("cudnn_convolution", "cudnn_convolution_transpose"),
        *("matmul", "mm", "mv", "bmm", "addmm", "addmv", "addr", "addbmm", "baddbmm", "linear", "einsum"),
        *("chain_matmul", "linalg_multi_dot", "linalg_vecdot"),
        *("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell", "rnn_tanh_cell"),
        *("rnn_relu_cell", "_scaled_dot_product_flash_attention", "scaled_dot_product_attention"),
    )
)
"""Cast to the dtype of ``torch.autocast``; casts of fp32 parameters are kept until autocast ends."""

FP32_RESULT = frozenset(
    (
        *(
            "softmax.int",
            "log_softmax.int",
            "sum",
            "sum.dim_IntList",
            "prod",
            "prod.dim_int",
            "cumsum",
            "cumprod",
        ),
        *("linalg_vector_norm", "linalg_matrix_norm", "linalg_matrix_norm.str_ord"),
    )
)
"""Asked for an fp32 result, unless the caller names a dtype; what is read is not cast here."""

FP32_RESULT_OVERLOAD = {"norm.Scalar": "ScalarOpt_dtype", "norm.ScalarOpt_dim": "ScalarOpt_dim_dtype"}
"""The same for operators whose overload with a dtype is another one."""

WIDEST = frozenset(
    (
        *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put"),
        *("tensordot", "scatter_add"),
    )
)
"""Cast to fp32 if one of the arguments is fp32, else to the dtype of ``torch.autocast``."""

BANNED = frozenset({"binary_cross_entropy"})
"""Refused: unsafe in half precision."""

LEFT_OUT = frozenset({"_cudnn_rnn"})
"""CUDA alone has the operator."""

_AUTOCAST_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
Kernel = Callable[..., Any]
Cast = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def cuda_autocast_lists() -> Iterator[None]:
    """Let ``torch.autocast("cpu", dtype)`` cast as ``torch.autocast("cuda", dtype)`` does.

    It holds for everything that dispatches, also for a checkpoint's recomputation inside backward. The blocks
    may be nested.
    """
    cache = _WeightCache()
    with (
        kernels("AutocastCPU", _kernels(cache)),
        mock.patch.object(torch, "clear_autocast_cache", cache.cleared_with(torch.clear_autocast_cache)),
    ):
        yield


def listed(dispatch_key: str) -> frozenset[str]:
    """The aten operators that the installed torch casts in its own way under an autocast dispatch key.

    Overloads for named dimensions are left out.
    """
    names = torch._C._dispatch_get_registrations_for_dispatch_key(dispatch_key)
    plain = (name.removeprefix("aten::") for name in names if name.startswith("aten::"))
    return frozenset(name for name in plain if "name" not in name.partition(".")[2].lower())


def _kernels(cache: _WeightCache) -> dict[str, Kernel]:
    cuda, cpu = listed("AutocastCUDA") - LEFT_OUT, listed("AutocastCPU")
    same = LOWER_PRECISION & cuda & cpu  # torch's own kernels for the CPU do that, and cache the casts
    functions: dict[str, Kernel] = dict.fromkeys(cpu - cuda, fallthrough_kernel)
    functions.update((name, _kernel(name, cache)) for name in cuda - same)
    return functions


def _kernel(name: str, cache: _WeightCache) -> Kernel:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    if name in BANNED:
        return _banned
    if name in LOWER_PRECISION:
        return _without_autocast(lambda *args, **kwargs: operator(*_map(cache.cast, args), **kwargs))
    if name in FP32_RESULT:
        return _without_autocast(_fp32_result(operator))
    if name in FP32_RESULT_OVERLOAD:
        typed = getattr(getattr(torch.ops.aten, packet), FP32_RESULT_OVERLOAD[name])
        return _without_autocast(_fp32_result_overload(operator, typed))
    if name in WIDEST:
        return _without_autocast(lambda *args, **kwargs: operator(*_map(_to(_widest(args)), args), **kwargs))
    return _without_autocast(lambda *args, **kwargs: operator(*_map(_to(torch.float32), args), **kwargs))


def _without_autocast(function: Kernel) -> Kernel:
    """Casts are made below autocast, but above autograd, which records them."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_CPU):
            return function(*args, **kwargs)

    return kernel


def _banned(*_: Any, **__: Any) -> Any:
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast: combine the "
        "sigmoid and the loss by binary_cross_entropy_with_logits"
    )


def _fp32_result(operator: Any) -> Kernel:
    position = [argument.name for argument in operator._schema.arguments].index("dtype")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        given = args[position] if len(args) > position else kwargs.get("dtype")
        if given is not None or not _eligible(args[0]):
            return operator(*args, **kwargs)
        return operator(*args[:position], **{**kwargs, "dtype": torch.float32})

    return kernel


def _fp32_result_overload(operator: Any, typed: Any) -> Kernel:
    """``typed`` is ``operator`` with a dtype that must be given."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        given = {a.name: a.default_value for a in operator._schema.arguments if a.has_default_value()}
        given |= dict(zip((a.name for a in operator._schema.arguments), args, strict=False))
        given |= kwargs
        dtype = torch.float32 if _eligible(args[0]) else args[0].dtype
        return typed(*(given[a.name] for a in operator._schema.arguments), dtype=dtype)

    return kernel


class _WeightCache:
    """Casts of fp32 parameters, kept until autocast ends, so that a weight is cast once for all of its uses.

    Source: ``cached_cast`` in ATen/autocast_mode.cpp, whose own cache is out of Python's reach.
    """

    def __init__(self) -> None:
        self._casts: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in the dtype of ``torch.autocast``."""
        dtype = torch.get_autocast_dtype("cpu")
        if not _eligible(tensor) or tensor.dtype == dtype:
            return tensor
        weight = tensor.dtype == torch.float32 and tensor.requires_grad and tensor.is_leaf
        if not weight or tensor._is_view() or not torch.is_autocast_cache_enabled():
            return tensor.to(dtype)
        source, kept = self._casts.get(id(tensor), (None, None))
        if source is not None and source() is tensor:
            assert kept is not None
            return kept
        cast = tensor.to(dtype)
        self._casts[id(tensor)] = weakref.ref(tensor), cast
        return cast

    def cleared_with(self, clear: Callable[[], None]) -> Callable[[], None]:
        """``clear``, which autocast calls as it ends, and the casts here."""

        def both() -> None:
            self._casts.clear()
            clear()

        return both


def _eligible(value: Any) -> bool:
    """Source: ``is_eligible`` in ATen/autocast_mode.h."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _to(dtype: torch.dtype) -> Cast:
    return lambda tensor: tensor.to(dtype) if _eligible(tensor) else tensor


def _widest(args: tuple[Any, ...]) -> torch.dtype:
    """Source: ``promote_type`` in ATen/autocast_mode.h."""
    dtypes = {tensor.dtype for tensor in tree_leaves(args) if _eligible(tensor)}
    return torch.float32 if torch.float32 in dtypes else torch.get_autocast_dtype("cpu")


def _map(cast: Cast, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with each tensor cast, also those in lists."""
    return tree_map_only(torch.Tensor, cast, args)  # type: ignore[no-any-return]
