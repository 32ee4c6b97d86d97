"""The numbers of a decoder that memory depends on, read from a config without torch.

An ``Architecture`` is a list of weight tensors (what is stored) and a list of layers (what is computed).
Each weight appears once, with its exact shape, so that parameters, quantization overheads and an
allocator's rounding are sums over the same list.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

TensorKind = Literal["linear", "embedding", "norm", "bias", "other", "buffer"]


@dataclass(frozen=True)
class Tensor:
    """``count`` equal weight tensors of one role.

    ``name`` is the module path with ``*`` for the layer index, e.g. ``model.layers.*.mlp.down_proj.weight``.
    ``kind`` is ``linear`` only for a matrix that a linear layer (``nn.Linear`` or GPT-2's ``Conv1D``) or an
    expert holds: what weight quantization applies to. ``dtype_bytes`` is set where the tensor keeps a width
    of its own, whatever the model's dtype (rotary frequencies, masks, routing biases).
    """

    name: str
    shape: tuple[int, ...]
    kind: TensorKind
    count: int = 1
    dtype_bytes: int | None = None

    @property
    def numel(self) -> int:
        """Elements of one of the tensors."""
        return prod(self.shape)


@dataclass(frozen=True)
class Attention:
    """One layer's attention.

    ``kv_heads`` equal to ``heads`` is multi-head, fewer is grouped-query, 1 is multi-query. ``window`` is
    the number of positions that a sliding window keeps (``None``: all). For multi-head latent attention
    (DeepSeek-V2, arXiv:2405.04434) ``kv_lora_rank`` is the width of the compressed keys and values and
    ``head_dim`` the width of a query and key head (nope + rope); ``value_dim`` that of a value head.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    chunk: int | None = None
    fused_qkv: bool = False
    rotary_dim: int = 0
    qk_norm: bool = False
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    rope_head_dim: int | None = None
    alibi: bool = False
    sinks: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class Mlp:
    """One layer's feed-forward part; ``experts`` 0 is dense, else ``experts_per_token`` of them are used.

    ``fused_gate`` computes gate and up projection as one matrix (experts always do).
    """

    intermediate: int
    gated: bool
    activation: str
    experts: int = 0
    experts_per_token: int = 0
    shared_intermediate: int = 0
    fused_gate: bool = False


@dataclass(frozen=True)
class Layer:
    """One block. ``parallel`` blocks feed attention and MLP from one input (GPT-J, Falcon)."""

    attention: Attention
    mlp: Mlp
    norm: Literal["layernorm", "rmsnorm"]
    norms: int = 2
    parallel: bool = False
    residual_dropout: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer by its numbers.

    ``max_positions`` is what the config promises; ``learned_positions`` says that the model cannot go
    beyond it, because each position has a row of its own.
    """

    model_type: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    tied_embeddings: bool
    max_positions: int | None
    learned_positions: bool = False
    embedding_dropout: float = 0.0
    final_logit_softcap: bool = False

    @property
    def parameters(self) -> int:
        """Trainable elements; tied weights count once, buffers do not count."""
        return sum(t.numel * t.count for t in self.tensors if t.kind != "buffer")
