"""What attention takes, against torch and transformers."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend

from mem_gpt_cli.attention import cost

CHOICES = {int(SDPBackend.MATH): "math", int(SDPBackend.FLASH_ATTENTION): "fused"}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("value_width", [16, 24])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_is_the_one_that_torch_picks_on_cpu(
    dropout: float, value_width: int, masked: bool
) -> None:
    q = torch.zeros(1, 2, 8, 16)
    v = torch.zeros(1, 2, 8, value_width)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool) if masked else None
    picked = torch._fused_sdp_choice(q, q, v, attn_mask=mask, dropout_p=dropout, is_causal=not masked)
    ours = cost.kernel("sdpa", "cpu", dropout=dropout, equal_widths=value_width == 16)
    assert ours == CHOICES[picked]


def test_eager_is_eager_and_cuda_is_fused() -> None:
    assert cost.kernel("eager", "cpu", dropout=0.0, equal_widths=True) == "eager"
    assert cost.kernel("sdpa", "cuda", dropout=0.1, equal_widths=True) == "fused"


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize(("queries", "keys"), [(16, 16), (1, 16), (1, 4), (4, 4)])
@pytest.mark.parametrize("window", [None, 8])
def test_a_mask_is_made_where_transformers_makes_one(
    backend: str, queries: int, keys: int, window: int | None
) -> None:
    from transformers import LlamaConfig
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    LlamaConfig()
    made = ALL_MASK_ATTENTION_FUNCTIONS[backend](
        batch_size=1, q_length=queries, kv_length=keys, q_offset=keys - queries, local_size=window
    )
    assert (made is not None) == cost.needs_mask(backend, queries, keys, window)


def test_scores_and_masks_are_quadratic_in_the_length() -> None:
    assert cost.score_bytes(2, 12, 1024, 1024, 4) == 2 * 12 * 1024 * 1024 * 4
    assert cost.mask_bytes(2, 1024, 1024) == 2 * 1024 * 1024
