"""The weights of a model in the order in which it names them, and which of its matrices have biases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mem_gpt_cli.adapters.cost import FACTOR_ITEM, adapted
from mem_gpt_cli.estimate.books import WIDTHS
from mem_gpt_cli.model.architecture import Architecture, Tensor
from mem_gpt_cli.optimizers.settings import Parameter
from mem_gpt_cli.quantization.placement import Placed, placed
from mem_gpt_cli.quantization.plan import Method, Plan
from mem_gpt_cli.recipe.schema import Recipe

_ROLES = {
    "qkv": ("c_attn", "query_key_value", "qkv_proj"),
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "q_a": ("q_a_proj",),
    "kv_a": ("kv_a_proj_with_mqa",),
    "o": ("attn.c_proj", "o_proj", "out_proj", "dense"),
    "q_b": ("q_b_proj",),
    "kv_b": ("kv_b_proj",),
    "gate": ("gate_proj", "gate_up_proj"),
    "up": ("c_fc", "up_proj", "gate_up_proj", "fc1", "fc_in", "dense_h_to_4h"),
    "down": ("mlp.c_proj", "down_proj", "fc2", "fc_out", "dense_4h_to_h"),
    "lm_head": ("lm_head",),
}
"""How families name the modules whose products a layer is walked through."""

_IN_MLP = frozenset({"gate", "up", "down"})


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


def trainable(architecture: Architecture, recipe: Recipe) -> list[Parameter]:
    """Each tensor that training changes, in the order in which a model names its parameters.

    Gradients, and what an optimizer keeps, follow from these shapes alone.

    Raises:
        RecipeError: for an adapter's target that names no matrix.
    """
    if recipe.adapters.kind == "none":
        item = WIDTHS[recipe.model.dtype]
        return [
            Parameter(tensor.shape, tensor.dtype_bytes or item, "*" in tensor.name)
            for tensor in _in_order([t for t in architecture.tensors if t.kind != "buffer"])
        ]
    return [
        Parameter(shape, FACTOR_ITEM, one.layer is not None)
        for one in adapted(architecture, recipe)
        for shape in ((one.rank, one.columns), (one.rows, one.rank))
    ]


def trainable_bytes(architecture: Architecture, recipe: Recipe) -> list[int]:
    """Bytes of each tensor that training changes, in the order in which a model names its parameters.

    Raises:
        RecipeError: for an adapter's target that names no matrix.
    """
    return [parameter.nbytes for parameter in trainable(architecture, recipe)]


def in_module_order(architecture: Architecture, plan: Plan) -> Sequence[Placed]:
    """Each weight tensor in the order in which modules are walked: embeddings, layers, the rest, buffers.

    Raises:
        UnsupportedError: for a matrix that its backend cannot hold.
    """
    parts: list[list[Placed]] = [[], [], [], []]
    for one in placed(architecture, plan):
        if one.tensor.kind == "buffer":
            parts[3].append(one)
        elif one.layer is not None:
            parts[1].append(one)
        else:
            parts[0 if one.tensor.kind == "embedding" else 2].append(one)
    parts[1].sort(key=lambda one: one.layer or 0)  # stable: within a layer they stay in their order
    return [one for part in parts for one in part]


def methods_of(architecture: Architecture, plan: Plan) -> Mapping[str, Method]:
    """How the matrices of the walk are quantized, by their names in it; those in full are left out."""
    methods: dict[str, Method] = {}
    if plan.quantizes:
        for one in placed(architecture, plan):
            if one.method is not None:
                methods |= dict.fromkeys(_walked_names(one), one.method)
    return methods


def by_layer(methods: Mapping[str, Method], architecture: Architecture) -> Sequence[Mapping[str, Method]]:
    """The methods of each layer, by the names within it."""
    layers: list[dict[str, Method]] = [{} for _ in architecture.layers]
    for name, method in methods.items():
        kind, _, rest = name.partition(".")
        index, _, role = rest.partition(".")
        if kind == "layers":
            layers[int(index)][role] = method
    return layers


def names_in_walk(module: str, layer: int | None) -> Sequence[str]:
    """What the matrix of a module is called in the walk; a gate and its up projection may be one matrix."""
    if layer is None:
        return ["head"]
    around = f"layers.{layer}."
    if "shared_expert" in module:
        around += "mlp.shared_experts."
    roles = [role for role, names in _ROLES.items() if any(f".{module}".endswith(f".{n}") for n in names)]
    return [f"{around}{'mlp.' if role in _IN_MLP and 'mlp.' not in around else ''}{role}" for role in roles]


def _walked_names(one: Placed) -> Sequence[str]:
    if one.layer is None and one.tensor.kind == "embedding":
        return ["embedding"]
    return names_in_walk(one.module, one.layer)


def _in_order(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each tensor as often as there are of it."""
    inside = [tensor for tensor in tensors if "*" in tensor.name]
    outside = [tensor for tensor in tensors if "*" not in tensor.name]
    first = [tensor for tensor in outside if tensor.kind == "embedding"]
    last = [tensor for tensor in outside if tensor.kind != "embedding"]
    depth = max((tensor.count for tensor in inside), default=0)
    layers = (tensor for index in range(depth) for tensor in inside if index < tensor.count)
    return [*first, *layers, *last]
