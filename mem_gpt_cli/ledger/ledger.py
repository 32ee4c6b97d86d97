"""The ledger of storages: a dispatch mode that sees each tensor storage come and go.

It works on fake tensors (the trace) and on real ones (the profile) alike, because it counts what the
operators return and when the last reference to a storage goes, and never looks at data.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mem_gpt_cli.ledger.accumulation import held_by_the_engine_alone, sums_in_place
from mem_gpt_cli.ledger.log import EventLog
from mem_gpt_cli.ledger.modules import ModulePath

aten = torch.ops.aten
_IN_A_BLOCK = re.compile(r"\.\d+(\.|$)")

_PRODUCTS = frozenset({aten.mm.default, aten.bmm.default, aten.addmm.default})
"""In the backward of a quantized layer these give gradients; all before them is on the way to them."""

Birth = tuple[torch.Tensor, int | None]
"""A result and what the kernel allocates for it, in bytes: ``None`` for its size, 0 on another device."""
Births = Callable[[tuple[Any, ...], Any], Iterable[Birth]]
"""Given an operator's arguments and results, the results' births in the order of allocation."""


class KernelBuffers(Protocol):
    """Knows what kernels allocate and free inside one operator, which no tensor shows."""

    def __call__(
        self, log: EventLog, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Sequence[int]:
        """The storages made in ``log`` for this call's inner buffers, which live until it returns.

        What a call leaves behind for good, as a library's workspace, it gives birth to in ``log`` itself.
        """
        ...


class Ledger(TorchDispatchMode):
    """Counts the bytes of every live storage while it is entered.

    Args:
        logits_width: size of the vocabulary; a buffer whose last dimension is that wide, which no block
            made and which is no weight or gradient, is counted as ``logits``.
        kernel_buffers: the inner buffers of kernels that do not run; ``None`` where they really do.
        on_birth: called with the storage's number and the tensor at each birth.
        device: the type of device whose memory is counted.
        births: for an operator what it leaves in the device's memory, where that is not its results as they
            are and in their order; see ``Birth``.
    """

    def __init__(
        self,
        logits_width: int | None = None,
        kernel_buffers: KernelBuffers | None = None,
        on_birth: Callable[[int, torch.Tensor], None] | None = None,
        device: str = "cpu",
        births: Mapping[Any, Births] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = EventLog()
        self.modules = ModulePath()
        self.modules.on_product = self._product
        self._logits_width = logits_width
        self._kernel_buffers = kernel_buffers
        self._on_birth = on_birth
        self._device = device
        self._births = births or {}
        self._numbers: dict[int, int | None] = {}
        self._watches: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._names: dict[Any, str] = {}
        self._paused = False
        self._on_the_way = False

    # -- what the workload says

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of the report: the events until its end belong to it."""
        if not self._paused:
            self.log.enter(name)
        yield

    def mark(self, component: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """The tensors' storages belong to a component; those not seen yet are born now."""
        if self._paused:
            return
        for tensor in tensors:
            if tensor is None:
                continue
            for leaf in _plain(tensor):
                number = self._number(leaf)
                if number is not None:
                    self.log.label(number, component)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is born inside is not counted unless it is marked afterwards; what dies inside is."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def keep_out(self, tensor: torch.Tensor) -> None:
        """The tensor's storage is never counted: it stands for memory of another device."""
        for leaf in _plain(tensor):
            storage = leaf.untyped_storage()
            if storage._cdata not in self._numbers:
                self._watch(storage, None)

    # -- what torch says

    def __enter__(self) -> Ledger:
        held_by_the_engine_alone()
        self.modules.attach()
        super().__enter__()  # type: ignore[no-untyped-call]
        self._rng_state = mock.patch.object(torch, "get_rng_state", self._counted(torch.get_rng_state))
        self._rng_state.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._rng_state.stop()
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self.modules.detach()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then count the storages in its result."""
        kwargs = kwargs or {}
        if sums_in_place(func, args, kwargs):
            func = aten.add_.Tensor
        result = func(*args, **kwargs)
        if self._paused:
            return result
        name = self._names.get(func)
        if name is None:
            name = self._names[func] = str(func).removesuffix(".default")
        self.log.operate(name, self.modules.current())
        self._on_the_way = func not in _PRODUCTS and self.modules.in_product_backward
        if isinstance(result, torch.Tensor):
            self._count(result)
        elif isinstance(result, (tuple, list)):
            births = self._births.get(func)
            for tensor, nbytes in births(args, result) if births else ((item, None) for item in result):
                if not isinstance(tensor, torch.Tensor):
                    continue
                if nbytes == 0:
                    self.keep_out(tensor)
                else:
                    self._count(tensor, nbytes)
        if self._kernel_buffers is not None:
            inner = self._kernel_buffers(self.log, func, args, kwargs, result)
            for storage in inner:
                self.log.birth(storage)
            for storage in reversed(inner):  # locals of C++ go in the reverse order of their making
                self.log.death(storage)
        return result

    def _counted(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """The random state that each checkpoint keeps is a tensor that no operator makes."""

        def counted() -> torch.Tensor:
            state = function()
            if not self._paused:
                self._count(state)
            return state

        return counted

    def _count(self, tensor: torch.Tensor, nbytes: int | None = None) -> None:
        for leaf in _plain(tensor):
            self._number(leaf, nbytes)

    def _number(self, tensor: torch.Tensor, nbytes: int | None = None) -> int | None:
        """The number of the tensor's storage, counting it now if it is new; ``None`` for an empty one."""
        if tensor.device.type != self._device:
            return None
        storage = tensor.untyped_storage()
        if storage._cdata in self._numbers:
            return self._numbers[storage._cdata]
        nbytes = storage.nbytes() if nbytes is None else nbytes
        if nbytes == 0:
            return None
        number = self.log.storage(nbytes, self._born_as(tensor))
        self._watch(storage, number)
        self.log.birth(number)
        if self._on_birth is not None:
            self._on_birth(number, tensor)
        return number

    def _watch(self, storage: torch.UntypedStorage, number: int | None) -> None:
        """Know the storage by that number until it goes; ``None`` for one that does not count."""
        key = storage._cdata
        self._numbers[key] = number
        self._watches[key] = weakref.ref(storage, lambda _: self._free(key))

    def _product(self, result: Any) -> None:
        """What a quantized layer returns is no workspace, unlike all that it made on the way."""
        if isinstance(result, torch.Tensor) and not self._paused:
            for leaf in _plain(result):
                number = self._numbers.get(leaf.untyped_storage()._cdata)
                if number is not None and self.log.storage_component[number] == "workspace":
                    self.log.storage_component[number] = self._born_as(leaf)

    def _born_as(self, tensor: torch.Tensor) -> str | None:
        if self.modules.in_product or self._on_the_way:
            return "workspace"
        wide = self._logits_width is not None and tensor.dim() > 1 and tensor.shape[-1] == self._logits_width
        # Scores over as many keys as there are words are as wide, but they are made inside a block.
        return "logits" if wide and not _IN_A_BLOCK.search(self.modules.current()) else None

    def _free(self, key: int) -> None:
        self._watches.pop(key, None)
        number = self._numbers.pop(key)
        if number is not None:
            self.log.death(number)


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that hold a tensor's bytes: itself, or the parts of a wrapper subclass.

    A fake tensor is a subclass too, but has a storage of its own.
    """
    flatten = getattr(type(tensor), "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    for name in names:
        yield from _plain(getattr(tensor, name))
