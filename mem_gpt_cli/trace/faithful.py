"""Where transformers asks whether it is being traced, the dry run answers as the real run would.

transformers takes a fake tensor for a sign of compilation, and then leaves its ordinary path: a causal mask
is materialised, flash attention is lost. Each patch here undoes one such departure, for the time of a trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
import torch._meta_registrations as shape_functions

_GROUPED_MM_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_GROUPED_MM_ALIGNMENT = 16
_scaled_grouped_mm = shape_functions._meta_grouped_mm_common
_torch_trunc_normal = torch.nn.init._no_grad_trunc_normal_


def _not_fake(_: Any) -> bool:
    return False


def _single_sequence(position_ids: torch.Tensor) -> None:
    """``find_packed_sequence_indices`` looks whether there are several packed sequences: there is one.

    It computes the sequence of each position, and gives that up once all of them are in the first.
    """
    from transformers import masking_utils

    with mock.patch.object(masking_utils, "is_tracing", _tracing):
        sequence = _find_packed_sequence_indices()(position_ids)
    (sequence[:, -1] == 0).all()


def _tracing(_: Any) -> bool:
    return True


@cache
def _find_packed_sequence_indices() -> Callable[[torch.Tensor], torch.Tensor]:
    from transformers import masking_utils

    return masking_utils.find_packed_sequence_indices  # type: ignore[no-any-return]


def _grouped_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale_result: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> torch.Tensor:
    """The result of a grouped matrix product, as torch's kernels for CPU and CUDA both allocate it.

    torch's own shape function demands bf16 and, in a build without CUDA, leaves out the padding of rows to 16
    bytes; no kernel does either (ATen/native/GroupedMMUtils.h, ``_grouped_mm_validate_inputs`` and
    ``create_grouped_gemm_output_tensor``).

    Raises:
        RuntimeError: for the types and strides that the kernels refuse too.
    """
    if scale_a is not None:
        return _scaled_grouped_mm(  # type: ignore[no-any-return]
            mat_a, mat_b, scale_a, scale_b, offs, bias, scale_result, out_dtype, use_fast_accum
        )
    for name, matrix in (("mat_a", mat_a), ("mat_b", mat_b)):
        _check_grouped_mm_input(name, matrix)
    if bias is not None or (offs is None) != (mat_a.dim() == mat_b.dim() == 3):
        raise RuntimeError("grouped_mm: it takes no bias, and offsets where a matrix is 2D")
    dtype = out_dtype or mat_a.dtype
    size = [mat_a.size(-2), mat_b.size(-1)]
    if mat_a.dim() == mat_b.dim():
        size = [mat_a.size(0) if offs is None else offs.size(0), *size]
    padded = -(-size[-1] * dtype.itemsize // _GROUPED_MM_ALIGNMENT) * _GROUPED_MM_ALIGNMENT // dtype.itemsize
    stride = [size[-2] * padded, padded, 1][-len(size) :]
    return torch.empty_strided(size, stride, dtype=dtype, device=mat_a.device)


def _check_grouped_mm_input(name: str, matrix: torch.Tensor) -> None:
    if matrix.dtype not in _GROUPED_MM_TYPES:
        raise RuntimeError(f"grouped_mm: {name} is {matrix.dtype}, neither float32, bfloat16 nor float16")
    (rows, columns), (row, column) = matrix.shape[-2:], matrix.stride()[-2:]
    if row == 1 and column >= max(1, rows):
        step = column
    elif column == 1 and row >= max(1, columns):
        step = row
    else:
        raise RuntimeError(f"grouped_mm: {name} has neither rows nor columns that lie together")
    if step * matrix.element_size() % _GROUPED_MM_ALIGNMENT:
        raise RuntimeError(f"grouped_mm: the rows of {name} do not lie a multiple of 16 bytes apart")


def _trunc_normal(
    tensor: torch.Tensor,
    mean: float,
    std: float,
    a: float,
    b: float,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """``torch.nn.init.trunc_normal_``, which draws again until no value lies outside.

    Without values, as many rounds as leave less than one value outside on average.
    """
    within = _normal_cdf((b - mean) / std) - _normal_cdf((a - mean) / std)
    if within <= 0.3:  # torch draws these in another way
        return _torch_trunc_normal(tensor, mean, std, a, b, generator)
    outside = float(tensor.numel())
    with torch.no_grad():
        result = tensor.normal_(mean, std, generator=generator)
        while True:
            mask = (result < a) | (result > b)
            outside *= 1 - within
            if outside < 1:
                break
            drawn = torch.empty_like(result).normal_(mean, std, generator=generator)
            result = torch.where(mask, drawn, result)
            del drawn
        if tensor is not result:
            tensor.copy_(result)
    return tensor


def _normal_cdf(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


@contextmanager
def unknown_tokens() -> Iterator[None]:
    """Continuous batching reads the tokens that were picked; a dry run has none to read."""
    from transformers.generation.continuous_batching import input_outputs

    with mock.patch.object(input_outputs.ContinuousBatchingIOs, "prepare_batch_update", _picked):
        yield


def _picked(inputs: Any) -> tuple[Any, list[int], None]:
    """``ContinuousBatchingIOs.prepare_batch_update`` with zeros for the tokens that were picked.

    Which tokens they are changes nothing: requests go on to their length, and what they share are pages of
    prompts, whose tokens the host has.
    """
    return inputs.requests_in_batch, [0] * inputs.num_request_in_batch, None


@contextmanager
def like_the_real_run() -> Iterator[None]:
    """Patch the questions that transformers asks about tracing and about data that a trace lacks."""
    from transformers import masking_utils
    from transformers.utils import import_utils

    _find_packed_sequence_indices()  # the original, before it is replaced
    with (
        mock.patch.object(import_utils, "is_fake_tensor", _not_fake),
        mock.patch.object(masking_utils, "find_packed_sequence_indices", _single_sequence),
        mock.patch.object(shape_functions, "_meta_grouped_mm_common", _grouped_mm),
        mock.patch.object(torch.nn.init, "_no_grad_trunc_normal_", _trunc_normal),
    ):
        yield
