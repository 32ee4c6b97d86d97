"""A run written down: sizes instead of tensors, and autograd's way back through them, without torch.

A ``Tensor`` here is a size and a handle on a ``Storage``; the storage enters the ledger when it is made and
leaves it when its last handle goes, as in torch. A forward pass written with the operations of ``ops`` thus
leaves exactly what autograd keeps, and ``Tape.backward`` walks it in autograd's own order (newest node first,
each node's saved tensors released before its gradients are handed on; torch/csrc/autograd/engine.cpp).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mem_gpt_cli.estimate.books import GRADIENTS, KERNEL_BUFFERS, RESIDUAL, Ledger, Storage
from mem_gpt_cli.quantization.plan import Method

if TYPE_CHECKING:
    from mem_gpt_cli.checkpointing.plan import Kept
    from mem_gpt_cli.estimate.checkpointing import KeptResults, Offload
    from mem_gpt_cli.estimate.cuda import CudaKernels


class Tensor:
    """``numel`` elements of ``item`` bytes in a storage; ``node`` made it, if a gradient flows to it.

    ``permuted`` says that the heads were moved before the tokens by a view, so that merging batch and heads
    needs a copy (where there is more than one sequence). ``viewed`` says that it is a view, whose base holds
    the bytes as well, so that autograd adds nothing to it in place.
    """

    __slots__ = ("item", "node", "numel", "permuted", "port", "storage", "viewed")

    def __init__(
        self,
        numel: int,
        item: int,
        storage: Storage,
        node: Node | None = None,
        port: int = 0,
        permuted: bool = False,
    ) -> None:
        self.numel = numel
        self.item = item
        self.storage = storage
        self.node = node
        self.port = port
        self.permuted = permuted
        self.viewed = False

    def view(self, *, permuted: bool = False) -> Tensor:
        """The same elements in another shape; no gradient flows through it until it is recorded."""
        out = Tensor(self.numel, self.item, self.storage, permuted=permuted)
        out.viewed = True
        return out

    def release(self) -> None:
        """Let the storage go, as code does that binds a name anew while its caller's frame still runs."""
        self.storage = self.storage.emptied()

    def edge(self) -> Edge:
        """The way back to what made this tensor; its gradient counts as what the tensor counts as."""
        slot = GRADIENTS if self.node is not None and self.node.keeps else self.storage.slot
        return Edge(self.node, self.port, self.numel, self.item, slot)

    def handle(self) -> Tensor:
        """The same tensor once more, cut from what made it."""
        out = Tensor(self.numel, self.item, self.storage, permuted=self.permuted)
        out.viewed = self.viewed
        return out


class Edge(NamedTuple):
    """One input of a node: where its gradient goes (``None``: nowhere), its size, what it counts as."""

    node: Node | None
    port: int
    numel: int
    item: int
    slot: int


Rule = Callable[["Tape", "Node", "list[Tensor | None]"], "Sequence[Tensor | None]"]


class Node:
    """One operation that autograd will go back through."""

    __slots__ = ("edges", "grads", "keeps", "module", "operation", "rule", "saved", "slot", "uses")

    def __init__(
        self,
        operation: str,
        edges: tuple[Edge, ...],
        saved: Sequence[Storage],
        rule: Rule,
        slot: int,
        ports: int = 1,
        module: str = "",
    ) -> None:
        self.operation = operation
        self.edges = edges
        self.saved: Sequence[Storage] | None = saved
        self.rule = rule
        self.slot = slot
        self.module = module
        self.keeps = rule is _no_rule
        self.uses = 0
        self.grads: list[Tensor | None] = [None] * ports

    def receive(self, tape: Tape, port: int, grad: Tensor) -> None:
        """Add a gradient to those that wait: in place where nobody else holds the bytes.

        torch/csrc/autograd/input_buffer.cpp, ``can_accumulate_inplace``.
        """
        held = self.grads[port]
        if held is None:
            self.grads[port] = grad
        elif held.viewed or sys.getrefcount(held.storage) > 2:
            self.grads[port] = tape.new(held.numel, held.item, "add", held.storage.slot)


class Parameter(Tensor):
    """A weight; its node keeps the gradient until ``zero_grad``. ``method`` says how it is quantized.

    ``frozen`` is one that wants no gradient, in training or not.
    """

    __slots__ = ("frozen", "method")

    def __init__(
        self,
        numel: int,
        item: int,
        storage: Storage,
        trainable: bool,
        method: Method | None = None,
        *,
        frozen: bool = False,
    ) -> None:
        self.method, self.frozen = method, frozen
        node = Node("accumulate_grad", (), (), _no_rule, GRADIENTS) if trainable else None
        super().__init__(numel, item, storage, node)

    def zero_grad(self) -> None:
        """Drop the gradient, as ``zero_grad(set_to_none=True)`` does."""
        if self.node is not None:
            self.node.grads[0] = None


def _no_rule(*_: object) -> Sequence[Tensor | None]:
    raise AssertionError("a parameter's node is never on the tape")


class Tape:
    """Where operations are written down: the ledger, the nodes in their order, and the mode of the run.

    ``autocast`` is the width in bytes of the lower precision, 0 without; ``cuda`` are the kernels of a GPU;
    ``dtype`` is the model's, by its name in a recipe; ``training`` says in
    which mode its layers are. ``adds_to`` are the nodes of weights with a gradient
    already: what backward finds is added to it when the last part is known, and goes
    (torch/csrc/autograd/functions/accumulate_grad.h). ``results`` are those that the checkpointed layer keeps
    which is running; ``offload`` is where saved tensors wait that are ``leaving`` the device. ``trains`` says
    that what has run unrecorded is trained.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        recording: bool,
        autocast: int = 0,
        cuda: CudaKernels | None = None,
        dtype: str = "fp32",
        training: bool = False,
    ) -> None:
        self.training = training
        self.ledger = ledger
        self.dtype = dtype
        self.recording = recording
        self.autocast = autocast
        self.cuda = cuda
        self.slot = RESIDUAL
        self.in_backward = False
        self.nodes: list[Node] = []
        self.adds_to: frozenset[Node] = frozenset()
        self.casts: dict[int, Tensor] = {}
        self.trains = False
        self.results: KeptResults | None = None
        self.offload: Offload | None = None
        self.leaving = False

    def new(self, numel: int, item: int, operation: str, slot: int | None = None) -> Tensor:
        """A fresh tensor; its bytes are booked under the present slot unless one is given."""
        slot = self.slot if slot is None else slot
        return Tensor(numel, item, Storage(self.ledger, slot, numel * item, operation))

    def copy(self, x: Tensor) -> Tensor:
        """A tensor like ``x``, in a storage as long as that of ``x``."""
        storage = Storage(self.ledger, x.storage.slot, x.storage.nbytes, "clone")
        return Tensor(x.numel, x.item, storage, permuted=x.permuted)

    def scratch(self, nbytes: int, operation: str) -> None:
        """Bytes that a kernel takes and gives back within one operation."""
        Storage(self.ledger, KERNEL_BUFFERS, nbytes, operation)

    def buffers(self, sizes: Sequence[int], operation: str) -> None:
        """Buffers that a kernel has all at once, in the order of their making."""
        [Storage(self.ledger, KERNEL_BUFFERS, nbytes, operation) for nbytes in sizes if nbytes]

    def reduce_rows(self, rows: int, width: int, item: int) -> None:
        """What CUDA takes to add up the rows of a matrix; the CPU takes nothing."""
        if self.cuda:
            self.buffers(self.cuda.row_sum(rows, width, item), "sum")

    def record(
        self,
        operation: str,
        out: Tensor,
        inputs: Sequence[Tensor],
        saved: Sequence[Storage],
        rule: Rule,
    ) -> Tensor:
        """Put the node of an operation on the tape if a gradient flows to any of its inputs."""
        if not any(x.node is not None for x in inputs):
            return out
        if self.recording:
            if self.results is not None:
                self.results.note(self.ledger, out.storage, saved)
            if self.offload is not None and self.leaving:
                saved = self.offload.leave(saved)
            out.node = Node(
                operation, tuple(x.edge() for x in inputs), saved, rule, self.slot, module=self.ledger.module
            )
            self.nodes.append(out.node)
            for edge in out.node.edges:
                if edge.node is not None:
                    edge.node.uses += 1
        else:
            self.trains = True
        return out

    def kept(self, word: Kept, make: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What ``make`` makes; that of the forward pass where a layer keeps such and runs again."""
        return make() if self.results is None else self.results.of(self, word, make)

    def differentiates(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a gradient flows to any of the inputs; a checkpoint's forward pass does not record it."""
        return self.results is not None or (self.recording and any(x.node is not None for x in inputs))

    def backward(self, root: Tensor) -> None:
        """Walk the tape from its newest node to its oldest."""
        if root.node is None:
            raise ValueError("no gradient flows to the root of this backward pass")
        self.in_backward = True
        root.node.receive(self, root.port, self.new(root.numel, root.item, "ones_like"))
        self.backward_until(0)
        self.in_backward = False

    def backward_until(self, first: int) -> None:
        """Walk back until the tape is ``first`` nodes long."""
        nodes = self.nodes
        while len(nodes) > first:
            self._step(nodes.pop())

    def _step(self, node: Node) -> None:
        grads, node.grads = node.grads, []
        if all(grad is None for grad in grads):
            return
        self.slot = node.slot
        self.ledger.module = node.module
        if self.offload is not None:
            node.saved = self.offload.bring(self, node.saved or ())
        results = list(node.rule(self, node, grads))
        grads.clear()
        node.saved = None
        for index, edge in enumerate(node.edges):
            grad, results[index] = results[index], None
            if edge.node is None or grad is None:
                continue
            if grad.item != edge.item:
                grad = self.new(
                    edge.numel, edge.item, "_to_copy", edge.node.slot if edge.node.keeps else None
                )
            edge.node.receive(self, edge.port, grad)
            grad = None
        for edge in node.edges if self.adds_to else ():
            if edge.node is not None:
                edge.node.uses -= 1
                if not edge.node.uses and edge.node in self.adds_to:
                    edge.node.grads[0] = None
