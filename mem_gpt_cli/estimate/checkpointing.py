"""Layers on paper that run again in backward, or whose saved tensors wait in the host's memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from mem_gpt_cli.checkpointing.cost import CHANGED_IN_PLACE, LEAST_BYTES
from mem_gpt_cli.checkpointing.plan import Kept
from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.estimate.blocks import block
from mem_gpt_cli.estimate.books import ADAPTERS, INPUTS, WEIGHTS, Highest, Ledger, Storage
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.tape import Node, Parameter, Tape, Tensor
from mem_gpt_cli.model.architecture import Layer

_ADDS_IN_PLACE = ("falcon",)
"""Models whose parallel layers add attention to the result of the last product."""
RANDOM_STATE = 5056
"""Bytes of the CPU generator's state, which each checkpoint keeps (ATen/CPUGeneratorImpl.cpp); that of a GPU
lies in the host's memory.
"""


def checkpointed(run: Pass, layer: Layer, index: int, x: Tensor, keep: Collection[Kept]) -> Tensor:
    """One layer that keeps its input and some results, and runs again in backward (torch.utils.checkpoint).

    Raises:
        UnsupportedError: for code that changes such a result in place.
    """
    if "products" in keep and layer.parallel and run.architecture.model_type in _ADDS_IN_PLACE:
        raise UnsupportedError(CHANGED_IN_PLACE)
    tape, results = run.tape, KeptResults(keep)
    generator = [] if tape.cuda else [Storage(tape.ledger, INPUTS, RANDOM_STATE, "get_rng_state")]
    recording, tape.recording = tape.recording, False
    tape.results, tape.trains = results, False
    out = block(run, layer, index, x.handle())
    tape.recording, tape.results = recording, None
    if not recording or not (tape.trains or x.node is not None):
        return out

    def recompute(tape: Tape, node: Node, grads: list[Tensor | None]) -> Sequence[Tensor | None]:
        edge = node.edges[0]
        assert node.saved is not None
        leaf = Parameter(edge.numel, edge.item, node.saved[0], trainable=edge.node is not None)
        first = len(tape.nodes)
        tape.casts.clear()
        tape.results = results.replayed()
        again = block(run, layer, index, leaf)
        tape.results = None
        results.end(tape.ledger)
        assert again.node is not None
        again.node.receive(tape, again.port, grads.pop())  # type: ignore[arg-type]
        del again
        tape.casts.clear()
        unused = results.unused(tape.nodes)
        tape.backward_until(first)
        del unused
        generator.clear()
        return [leaf.node.grads[0] if leaf.node is not None else None]

    out.node = Node("checkpoint", (x.edge(),), (x.storage,), recompute, tape.slot, module=tape.ledger.module)
    tape.nodes.append(out.node)
    if x.node is not None:
        x.node.uses += 1
    return out


class KeptResults:
    """What one layer keeps of its forward pass, in the order in which its second run asks for it."""

    def __init__(self, keep: Collection[Kept]) -> None:
        self._keep = keep
        self._results: deque[Sequence[Tensor]] = deque()
        self._replays = False
        self._last: tuple[int, Sequence[Tensor]] | None = None
        self._before: Highest | None = None
        self._needed: Highest | None = None

    def replayed(self) -> KeptResults:
        """The same, for the second run."""
        self._replays = True
        return self

    def of(self, tape: Tape, word: Kept, make: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What is made in the first run, and handed out in the second."""
        if word not in self._keep:
            return make()
        if self._replays:
            results = self._results.popleft()
            if not self._results:  # of the others nothing is left once the second run has used them
                self._last = (len(tape.nodes), [x.handle() for x in results])
            return results
        made = make()
        self._results.append([x.handle() for x in made])
        return made

    def note(self, ledger: Ledger, out: Storage, saved: Sequence[Storage]) -> None:
        """An operation of the second run saves something: all that was live until then really is.

        Inputs are saved before the operation runs, its result after it.
        """
        now = ledger.highest_so_far()
        if saved:
            self._needed = now if any(storage is out for storage in saved) else self._before
        self._before = now

    def end(self, ledger: Ledger) -> None:
        """The second run is over: torch ended it with the last tensor to be saved, and made no more."""
        if self._needed is not None:
            ledger.forget_since(self._needed)
        self._before = self._needed = None

    def unused(self, nodes: Sequence[Node]) -> Sequence[Tensor]:
        """The last result, if torch never asks for it: the second run ends with the last tensor to be saved.

        Such a result stays until the layer's backward is over.
        """
        if self._last is None:
            return ()
        (asked, results), self._last = self._last, None
        saving = max((index for index, node in enumerate(nodes) if node.saved), default=-1)
        own = {id(x.storage) for x in results}
        runs = saving > asked or (
            saving == asked and any(id(storage) in own for storage in nodes[asked].saved or ())
        )
        return () if runs else results


def offloaded(run: Pass, layer: Layer, index: int, x: Tensor) -> Tensor:
    """One layer whose saved tensors wait in the host's memory (``checkpointing.offload``)."""
    tape = run.tape
    tape.offload = tape.offload or Offload(tape.ledger)
    tape.leaving = True
    out = block(run, layer, index, x)
    tape.leaving = False
    return out


class Away(Storage):
    """A storage's bytes on the host; it is on no books of the device."""

    __slots__ = ("offload",)

    def __init__(self, storage: Storage, offload: Offload) -> None:
        self.slot, self.nbytes, self.offload = storage.slot, storage.nbytes, offload
        offload.live += self.nbytes
        offload.ledger.offloaded = max(offload.ledger.offloaded, offload.live)

    def __del__(self) -> None:
        self.offload.live -= self.nbytes


class Offload:
    """Saved tensors in the host's memory, ``live`` bytes; the books note the most that were there."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.live = ledger, 0

    def leave(self, saved: Sequence[Storage]) -> Sequence[Storage]:
        """What a node holds in the place of what it saved: each storage goes to the host once."""
        return [self._away(storage) for storage in saved]

    def _away(self, storage: Storage) -> Storage:
        if storage.slot in (WEIGHTS, ADAPTERS) or storage.nbytes < LEAST_BYTES:
            return storage
        if storage.away is None:
            storage.away = Away(storage, self)
        return storage.away

    def bring(self, tape: Tape, saved: Sequence[Storage]) -> Sequence[Storage]:
        """Copies on the device for the time of one node's backward; views of one storage share one."""
        copies: dict[int, Storage] = {}
        brought = []
        for storage in saved:
            if isinstance(storage, Away) and id(storage) not in copies:
                copies[id(storage)] = Storage(tape.ledger, storage.slot, storage.nbytes, "copy_")
            brought.append(copies.get(id(storage), storage))
        return brought
