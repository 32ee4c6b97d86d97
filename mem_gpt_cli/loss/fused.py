"""The loss by torch's own ``linear_cross_entropy``: output matrix and cross entropy in one operator."""

from __future__ import annotations

from typing import Any

import torch

from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.loss.cost import FusedPlan, fused_plan
from mem_gpt_cli.loss.head import Halves
from mem_gpt_cli.loss.targets import IGNORED, next_labels
from mem_gpt_cli.recipe.schema import Recipe


def fused_loss(
    model: torch.nn.Module,
    recipe: Recipe,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """The mean cross entropy of the labels that are learnt, in chunks of torch's own size.

    The operator computes the gradients of hidden states and matrix in the forward pass already; backward
    scales them. Arguments as for ``chunked_loss``. Autocast does not know the operator: what it would do of
    a matrix product is done here.

    Raises:
        EnvironmentUnavailableError: for a torch without the operator.
    """
    hidden = Halves(model).decode(tokens, mask).last_hidden_state
    matrix: Any = model.get_output_embeddings()  # type: ignore[operator]
    rows, weight, bias = hidden.reshape(-1, hidden.shape[-1]), matrix.weight, matrix.bias
    kind = tokens.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        rows, weight = rows.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    plan = fused_plan(
        recipe.device.type, rows.dtype.itemsize, rows.shape[0], weight.shape[1], weight.shape[0]
    )
    with torch.autocast(kind, enabled=False):
        loss: torch.Tensor = torch.nn.functional.linear_cross_entropy(
            rows, weight, next_labels(labels), linear_bias=bias, ignore_index=IGNORED, options=_options(plan)
        )
    return loss


def _options(plan: FusedPlan) -> Any:
    """What torch would choose by itself, said outright, because a dry run for CUDA has its tensors elsewhere.

    torch/nn/modules/linear_cross_entropy_options.py.
    """
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if options is None:
        raise EnvironmentUnavailableError(
            f"torch {torch.__version__} has no chunked linear_cross_entropy: loss.kind: fused needs torch "
            "2.13, chunked any"
        )
    return options(
        acc_policy=plan.policy,
        batch_chunk_size=plan.rows,
        chunking_method=None,
        acc_dtype=torch.float32 if plan.widens else None,
    )
