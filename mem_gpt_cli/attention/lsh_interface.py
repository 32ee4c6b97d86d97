"""LSH attention as transformers calls it: registered with its masks under a name that holds its settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mem_gpt_cli.attention.cost import LSH_NO_DROPOUT
from mem_gpt_cli.attention.lsh import attend
from mem_gpt_cli.attention.plan import Lsh
from mem_gpt_cli.errors import UnsupportedError

PREFIX = "lsh"


def register(lsh: Lsh) -> str:
    """Make LSH attention with these settings known to transformers; returns the name that it has there."""
    from transformers import AttentionInterface, AttentionMaskInterface

    name = f"{PREFIX}_{lsh.rounds}_{lsh.buckets or 'auto'}_{lsh.chunk}"
    AttentionInterface.register(name, partial(lsh_attention, lsh=lsh))
    AttentionMaskInterface.register(name, lsh_mask)
    return name


def lsh_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **rest: Any,
) -> Tensor | None:
    """Which tokens are no padding, ``[batch, tokens]``, where a sequence attends to itself and is hashed.

    Everything else is SDPA's mask: one query over a cache, windows, packed sequences. A mask of all pairs
    would be as large as the scores that hashing saves.
    """
    from transformers.masking_utils import sdpa_mask

    windowed = local_size is not None and kv_length >= local_size
    if 1 < q_length == kv_length and allow_is_causal_skip and not windowed:
        return attention_mask
    return sdpa_mask(  # type: ignore[no-any-return]
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        **rest,
    )


def lsh_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    lsh: Lsh,
    **options: Any,
) -> tuple[Tensor, None]:
    """``[batch, tokens, heads, width]`` from ``[batch, heads, tokens, width]``.

    A single query over a cache needs no hashing, its scores are one row: SDPA computes it, as everything that
    comes with a mask of pairs.

    Raises:
        UnsupportedError: for dropout of attention weights, and for scores that are capped or have sinks.
    """
    tokens = query.shape[2]
    if tokens == 1 or (attention_mask is not None and attention_mask.dim() == 4):
        return _sdpa()(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
    if dropout:
        raise UnsupportedError(LSH_NO_DROPOUT)
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise UnsupportedError(
            "attention.backend: lsh computes plain softmax, and this model caps its scores or has sinks: "
            "choose eager"
        )
    query, key, value = (_lowered(x) for x in (query, key[:, :, :tokens], value[:, :, :tokens]))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        layer = int(getattr(module, "layer_idx", None) or 0)
        output = attend(query, key, value, attention_mask, lsh.cut(tokens), scale, seed=layer)
    return output, None


def _lowered(x: Tensor) -> Tensor:
    """Cast as autocast casts what goes into attention (ATen/autocast_mode.h)."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _sdpa() -> Callable[..., tuple[Tensor, None]]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward  # type: ignore[no-any-return]
