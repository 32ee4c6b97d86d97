"""What torch's ``linear_cross_entropy`` takes inside, which on fake tensors does not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.loss.cost import Fused
from mem_gpt_cli.model.build import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def linear_cross_entropy(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ARG001
    """Logits of one chunk, what is kept for each position, and fp32 sums of narrower gradients.

    Source: ``_ChunkContext`` in torch/nn/modules/linear_cross_entropy.py; see ``loss.cost.Fused``.
    """
    return _call("cpu", args).inside_bytes


def linear_cross_entropy_on_cuda(
    gpu: Gpu,  # noqa: ARG001
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],  # noqa: ARG001
    result: Any,  # noqa: ARG001
) -> Sequence[int]:
    """A chunk half as long as the CPU's in half precision, and no fp32 sums of the matrix's gradient.

    bf16's logits are there once more as bf16.

    Source: ``_ChunkContext`` in torch/nn/modules/linear_cross_entropy.py of torch 2.13, with ``is_cuda``.
    """
    return _call("cuda", args).inside


def _call(device: str, args: tuple[Any, ...]) -> Fused:
    rows, matrix, bias, trains_matrix = args[0], args[1], args[3], args[13]
    return Fused(
        device=device,
        dtype=_NAMES[rows.dtype],
        rows=rows.shape[0],
        hidden=rows.shape[1],
        vocab=matrix.shape[0],
        trains_matrix=trains_matrix,
        biased=bias is not None,
    )


def operator() -> Any:
    """The operator behind ``linear_cross_entropy``; ``None`` in a torch without it."""
    module = "torch.nn.modules.linear_cross_entropy"
    if find_spec(module) is None:
        return None
    import_module(module)  # torch registers it with its first call
    return torch.ops.torch_nn._linear_cross_entropy_batch_chunked.default
