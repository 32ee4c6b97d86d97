"""``torch.nn.functional.scaled_dot_product_attention`` on fake CPU tensors, as CUDA runs it.

``scaled_dot_product_attention`` in ATen/native/transformers/attention.cpp picks a kernel and dresses its
arguments: this does the same with the kernel that the GPU would run. The kernels themselves have shape
functions in torch, forward and backward; their inner buffers are in ``attention_kernels``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.build import Build
from mem_gpt_cli.trace.cuda.sdpa_choice import HALF, Kernel, choose_kernel

aten = torch.ops.aten

_MASK_ALIGNMENT = 8
_HEAD_ALIGNMENT = 8
_CUDNN_MASKED_OUT = -65504.0


@contextmanager
def attention_of(gpu: Gpu, made_by: Build | None = None) -> Iterator[None]:
    """While entered, ``torch.nn.functional.scaled_dot_product_attention`` is the GPU's.

    Args:
        made_by: the build of torch that is to run there; by default one of the version that runs here.
    """

    def on_gpu(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        return scaled_dot_product_attention(
            gpu, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, made_by
        )

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", on_gpu):
        yield


def scaled_dot_product_attention(
    gpu: Gpu,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    made_by: Build | None = None,
) -> Tensor:
    """Attention as ``torch.nn.functional`` defines it, by the operators that ``gpu`` would run.

    Raises:
        RuntimeError: where torch raises it too.
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (_lowered(tensor) for tensor in (query, key, value))
        attn_mask = None if attn_mask is None else _lowered(attn_mask)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    kernel = choose_kernel(
        gpu,
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        enable_gqa,
        needs_grad,
        made_by=made_by,
    )
    with torch.autocast("cpu", enabled=False):
        if kernel == "math":
            return _math(
                query, key, value, _additive(attn_mask, query.dtype), dropout_p, is_causal, scale, enable_gqa
            )
        return _FUSED[kernel](query, key, value, attn_mask, dropout_p, is_causal, scale, needs_grad)


def _lowered(tensor: Tensor) -> Tensor:
    """Cast by autocast: attention is in ``AT_FORALL_LOWER_PRECISION_FP`` of ATen/autocast_mode.h."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,  # noqa: ARG001
    dropout: float,
    is_causal: bool,
    scale: float | None,
    needs_grad: bool,  # noqa: ARG001
) -> Tensor:
    """Heads are padded to a multiple of 8, and the result is cut to the head's own size."""
    size = query.shape[-1]
    scale = 1 / math.sqrt(size) if scale is None else scale
    padded = [_padded_heads(tensor) for tensor in (query, key, value)]
    output: Tensor = aten._scaled_dot_product_flash_attention(
        *padded, dropout, is_causal, False, scale=scale
    )[0]
    return output if output.shape[-1] == size else output[..., :size]


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    needs_grad: bool,
) -> Tensor:
    """A mask is padded to rows of a multiple of 8, and then seen as large as the scores."""
    mask = _additive(mask, query.dtype)
    if mask is not None:
        mask = _aligned(mask).expand(*query.shape[:3], key.shape[2])
    output: Tensor = aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, needs_grad, dropout, is_causal, scale=scale
    )[0]
    return output


def _cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    needs_grad: bool,
) -> Tensor:
    mask = _additive(mask, query.dtype, masked_out=_CUDNN_MASKED_OUT)
    output: Tensor = aten._scaled_dot_product_cudnn_attention(
        query, key, value, mask, needs_grad, dropout, is_causal, False, scale=scale
    )[0]
    return output


_SELECTIVE = (_CachingTorchDispatchMode, _CachedTorchDispatchMode)
"""The modes of ``create_selective_checkpoint_contexts``, in a layer's first run and its second."""
_FUSED: dict[Kernel, Callable[..., Tensor]] = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn}


def _math(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Plain operators, in fp32 unless reduced precision is allowed.

    Source: ``_scaled_dot_product_attention_math``. It is written out because torch, seeing a fake tensor,
    would add the mask out of place, as on a GPU it does under the dispatch modes of selective checkpointing
    alone; locals live as long as they do there.
    """
    origin = query.dtype
    exact = not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    query_acc, key_acc, value_acc = (
        tensor.float() if exact and tensor.dtype in HALF else tensor for tensor in (query, key, value)
    )
    factor = math.sqrt(abs(1 / math.sqrt(query.shape[-1]) if scale is None else scale))
    scaled = query_acc * (-factor if scale is not None and scale < 0 else factor)
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        mask = _additive(mask, scaled.dtype)
    key_all, value_all = _repeated(scaled, key_acc, value_acc, enable_gqa)
    scores = torch.matmul(scaled, key_all.transpose(-2, -1) * factor)
    if mask is not None:
        scores = scores + mask if _keeps_results() else scores.add_(mask)
    scores = aten._safe_softmax(scores, -1)
    if dropout > 0:
        scores = torch.native_dropout(scores, dropout, True)[0]
    returned = scores.to(origin)  # torch returns the scores too, and makes them first
    output = torch.matmul(scores, value_all).to(origin)
    del returned
    return output


def _keeps_results() -> bool:
    """Whether selective checkpointing watches what runs, so that torch changes nothing in place here."""
    return any(isinstance(mode, _SELECTIVE) for mode in _get_current_dispatch_mode_stack())


def _repeated(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor]:
    """Source: ``pre_process_group_query_attention_input``."""
    heads = query.shape[-3]
    if not enable_gqa or heads == key.shape[-3] == value.shape[-3]:
        return key, value
    key_all = key.repeat_interleave(heads // key.shape[-3], -3)
    return key_all, value.repeat_interleave(heads // value.shape[-3], -3)


def _additive(mask: Tensor | None, dtype: torch.dtype, masked_out: float = -math.inf) -> Tensor | None:
    """A mask of booleans as what is added to scores. Source: ``convert_boolean_attn_mask_``."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(masked_out, dtype=dtype, device=mask.device))


def _aligned(mask: Tensor) -> Tensor:
    """Rows that begin a multiple of 8 elements apart. Source: ``preprocess_mask`` and ``pad_bias``."""
    steps = mask.stride()
    if all(step % _MASK_ALIGNMENT == 0 for step in steps[:-1]) and steps[-1] == 1:
        return mask
    width = mask.shape[-1]
    padded = torch.nn.functional.pad(mask, (0, _MASK_ALIGNMENT - width % _MASK_ALIGNMENT))
    return padded[..., :width]


def _padded_heads(tensor: Tensor) -> Tensor:
    """Source: ``pad_last_dim<8, false>``."""
    excess = tensor.shape[-1] % _HEAD_ALIGNMENT
    return torch.nn.functional.pad(tensor, (0, _HEAD_ALIGNMENT - excess)) if excess else tensor
