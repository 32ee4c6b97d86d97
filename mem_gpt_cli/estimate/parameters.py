"""The weights of a model in the order in which it names them, and which of its matrices have biases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mem_gpt_cli.model.architecture import Architecture, Tensor
from mem_gpt_cli.quantization import cost as quantization_cost
from mem_gpt_cli.quantization.cost import Scheme

_ROLES = {
    "qkv": ("c_attn", "query_key_value", "qkv_proj"),
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "q_a": ("q_a_proj",),
    "kv_a": ("kv_a_proj_with_mqa",),
    "o": ("attn.c_proj", "o_proj", "out_proj", "dense"),
    "gate": ("gate_proj",),
    "up": ("c_fc", "up_proj", "fc1", "fc_in", "dense_h_to_4h"),
    "down": ("mlp.c_proj", "down_proj", "fc2", "fc_out", "dense_4h_to_h"),
    "lm_head": ("lm_head",),
}
"""How families name the modules whose products a layer is walked through."""


class Vectors(NamedTuple):
    """Which matrices have biases, by their names in the walk, and how many vectors a layer norm has."""

    biased: frozenset[str] = frozenset()
    norms: int = 0

    @classmethod
    def of(cls, architecture: Architecture) -> Vectors:
        """Read them off the names of a model's tensors."""
        modules = {t.name.removesuffix(".bias") for t in architecture.tensors if t.kind == "bias"}
        biased = (
            role
            for role, names in _ROLES.items()
            if any(f".{m}".endswith(f".{n}") for m in modules for n in names)
        )
        norms = Counter(t.name.rpartition(".")[0] for t in architecture.tensors if t.kind == "norm")
        return cls(frozenset(biased), max(norms.values(), default=0))


def parameter_bytes(architecture: Architecture, item: int) -> Sequence[int]:
    """Bytes of each trainable tensor, layer by layer, in the order in which a model names its parameters."""
    return [
        tensor.numel * (tensor.dtype_bytes or item)
        for tensor in _in_order([t for t in architecture.tensors if t.kind != "buffer"])
    ]


def stored_parts(architecture: Architecture, scheme: Scheme, item: int) -> Sequence[int]:
    """Bytes of each stored tensor in that order, scales after what is quantized; buffers come last."""
    buffers = [t for t in architecture.tensors if t.kind == "buffer" for _ in range(t.count)]
    tensors = [*_in_order([t for t in architecture.tensors if t.kind != "buffer"]), *buffers]
    return [part for tensor in tensors for part in quantization_cost.stored(tensor, scheme, item) if part]


def _in_order(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each tensor as often as there are of it."""
    inside = [tensor for tensor in tensors if "*" in tensor.name]
    outside = [tensor for tensor in tensors if "*" not in tensor.name]
    first = [tensor for tensor in outside if tensor.kind == "embedding"]
    last = [tensor for tensor in outside if tensor.kind != "embedding"]
    depth = max((tensor.count for tensor in inside), default=0)
    layers = (tensor for index in range(depth) for tensor in inside if index < tensor.count)
    return [*first, *layers, *last]
