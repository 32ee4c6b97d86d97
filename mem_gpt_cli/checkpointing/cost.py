"""What checkpointing leaves of a layer's activations, what it runs twice, and what it moves: by sizes alone.

Sources: torch/utils/checkpoint.py (the input of a checkpoint is kept, arXiv:1604.06174), and ``selective.py``
beside this file.
"""

from __future__ import annotations

from mem_gpt_cli.checkpointing.plan import Plan
from mem_gpt_cli.model.architecture import Attention, Layer, Mlp

FP32 = 4
LEAST_BYTES = 4096
"""Saved storages below that many bytes are not worth a copy to the host, and stay."""
CHANGED_IN_PLACE = (
    "checkpointing.keep: this model's code changes the result of a product in place, so that it cannot be "
    "kept: write keep: [attention], or choose full"
)
"""Why a model is refused that adds something else to the result of its last product."""


def kept_bytes(plan: Plan, layer: Layer, hidden: int, rows: int, item: int, *, fused: bool = True) -> int:
    """Bytes that one recomputed layer keeps for backward: its input and, ``selective``, some results.

    Args:
        plan: the policy.
        layer: the layer's numbers; its feed-forward part is dense.
        hidden: the width of the residual stream.
        rows: tokens of all sequences.
        item: bytes of an element.
        fused: one kernel computes attention, and returns a log-sum-exp in fp32 for each row and head.
    """
    elements = hidden
    if "products" in plan.keep:
        elements += product_elements(layer.attention, layer.mlp, hidden)
    kept = rows * elements * item
    if "attention" in plan.keep and fused:
        part = layer.attention
        kept += rows * part.heads * (part.value_dim * item + FP32)
    return kept


def product_elements(attention: Attention, mlp: Mlp, hidden: int) -> int:
    """Elements a token that the products with weights of one dense layer return."""
    heads = attention.heads * attention.head_dim + attention.kv_heads * (
        attention.head_dim + attention.value_dim
    )
    return heads + hidden + (2 if mlp.gated else 1) * mlp.intermediate + hidden


def recomputed_layers(plan: Plan, layers: int) -> int:
    """Layers whose forward pass runs a second time in backward."""
    return sum(plan.recomputes(index) for index in range(layers))
