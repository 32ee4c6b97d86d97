"""Which of a model's weight tensors is stored how, read off its architecture without torch.

The torch side asks the modules themselves (``modules.replace_on_meta``); a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mem_gpt_cli.model.architecture import Architecture, Tensor
from mem_gpt_cli.quantization.plan import Method, Plan, Role
from mem_gpt_cli.quantization.storable import refuse_unstorable

HEAD = "lm_head"
_CONV1D_FAMILIES = frozenset({"gpt2"})
_SCALED_EMBEDDINGS = frozenset({"gemma3", "gemma3_text"})
"""Families whose embedding is a class of its own, which multiplies what it looks up."""


class Placed(NamedTuple):
    """One weight tensor of a model: its ``path``, the ``layer`` that it is in, if any, and how it is stored.

    ``rows`` and ``columns`` are outputs and inputs, where it is a matrix that could be quantized; of an
    embedding tokens and width.
    """

    tensor: Tensor
    path: str
    layer: int | None = None
    rows: int = 0
    columns: int = 0
    method: Method | None = None

    @property
    def module(self) -> str:
        """The module that holds it."""
        return self.path.removesuffix(".weight").removesuffix(".bias")


def placed(architecture: Architecture, plan: Plan) -> Iterator[Placed]:
    """Every weight tensor, in the order of ``architecture.tensors``, layer by layer within each.

    Raises:
        UnsupportedError: for a matrix that its backend cannot hold.
    """
    embedding = embedding_of(architecture)
    for tensor in architecture.tensors:
        role = role_of(architecture, tensor)
        if role is None or not plan.quantizes:
            yield from _each(architecture, tensor)
            continue
        rows, columns = matrix_of(architecture, tensor)
        for full in _each(architecture, tensor):
            one = full._replace(rows=rows, columns=columns)
            names: list[tuple[str, Role]] = [(one.module, role)]
            if tensor is embedding and architecture.tied_embeddings:
                names.append((HEAD, "head"))
            method = plan.shared(*names)
            if method is not None:
                refuse_unstorable(
                    one.module,
                    method,
                    rows,
                    columns,
                    plan.device,
                    embedding=role == "embedding",
                    plain=architecture.model_type not in _SCALED_EMBEDDINGS,
                )
            yield one._replace(method=method)


def modules(architecture: Architecture) -> Iterator[tuple[str, Role]]:
    """The modules that patterns are matched with."""
    for tensor in architecture.tensors:
        role = role_of(architecture, tensor)
        if role is not None:
            yield from ((one.module, role) for one in _each(architecture, tensor))
    if architecture.tied_embeddings:
        yield HEAD, "head"


def role_of(architecture: Architecture, tensor: Tensor) -> Role | None:
    """What part a tensor's module plays in quantization; ``None`` where it is always kept in full.

    Stacked experts are parameters of three dimensions and no linear layers; positions, norms, biases and
    tensors with a width of their own are kept as well.
    """
    if tensor is embedding_of(architecture):
        return "embedding"
    if tensor.kind != "linear" or len(tensor.shape) != 2 or tensor.dtype_bytes is not None:
        return None
    return "head" if tensor.name == f"{HEAD}.weight" else "linear"


def embedding_of(architecture: Architecture) -> Tensor | None:
    """The input's token embedding."""
    for tensor in architecture.tensors:
        if tensor.kind == "embedding" and tensor.shape[0] == architecture.vocab:
            return tensor
    return None


def matrix_of(architecture: Architecture, tensor: Tensor) -> tuple[int, int]:
    """Outputs and inputs; GPT-2's ``Conv1D`` holds them the other way round, and is transposed."""
    first, second = tensor.shape
    return (second, first) if transposed(architecture, tensor) else (first, second)


def transposed(architecture: Architecture, tensor: Tensor) -> bool:
    """Whether it is the matrix of a ``Conv1D``."""
    return architecture.model_type in _CONV1D_FAMILIES and tensor.kind == "linear" and "*" in tensor.name


def _each(architecture: Architecture, tensor: Tensor) -> Iterator[Placed]:
    """The tensor in each layer that has it."""
    before, star, after = tensor.name.partition("*")
    if not star:
        yield from (Placed(tensor, tensor.name) for _ in range(tensor.count))
        return
    for index in layers_with(architecture, tensor):
        yield Placed(tensor, f"{before}{index}{after}", index)


def layers_with(architecture: Architecture, tensor: Tensor) -> Sequence[int]:
    """The numbers of the layers that have a tensor: all, those with experts or those without."""
    every = range(len(architecture.layers))
    if tensor.count == len(every):
        return every
    mixed = [index for index in every if architecture.layers[index].mlp.experts]
    dense = [index for index in every if not architecture.layers[index].mlp.experts]
    for candidate in (mixed, dense):
        if len(candidate) == tensor.count:
            return candidate
    return range(tensor.count)
