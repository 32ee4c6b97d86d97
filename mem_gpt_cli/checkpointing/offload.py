"""What layers save for backward waits in the host's memory.

torch's ``save_on_cpu`` copies every saved tensor each time that it is saved, weights too. Here what a layer
holds anyway (its parameters and buffers) stays where it is, and each storage goes to the host once, however
many views of it are saved, and as the bytes that it is, so that no copy is made on the device first. The
copies run on the compute stream: the allocator may give a storage's memory away as soon as it is freed, and
what is live on the device is the same in every run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import TensorWeakRef

from mem_gpt_cli.checkpointing.cost import LEAST_BYTES

ATTRIBUTE = "_memgpt_offload"
"""Where a model has its ``Offload``."""


def to_host(flat: Tensor) -> Tensor:
    """A copy of a device's bytes in the host's memory, pinned where the device can read that by itself."""
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=flat.is_cuda)
    return host.copy_(flat, non_blocking=flat.is_cuda)


class HostCopy:
    """One storage's bytes on the host, and on the device again while a node of backward reads them."""

    def __init__(self, tensor: Tensor) -> None:
        self.device, self.version = tensor.device, tensor._version
        self.host = to_host(_whole(tensor))
        self._back: TensorWeakRef | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the copy."""
        return self.host.numel() * self.host.element_size()

    def on_device(self) -> Tensor:
        """The bytes on the device: those that another view has brought back, if it still has them."""
        flat: Tensor | None = self._back() if self._back is not None else None
        if flat is None:
            flat = torch.empty(self.host.shape, dtype=self.host.dtype, device=self.device)
            flat.copy_(self.host, non_blocking=flat.is_cuda)
            self._back = TensorWeakRef(flat)
        return flat


class View(NamedTuple):
    """A saved tensor as a view of a copy."""

    copy: HostCopy
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Offload:
    """Calls layers so that what they save for backward waits on the host; ``highest`` bytes at once did."""

    def __init__(self) -> None:
        self.live = self.highest = 0
        self._copies: dict[int, weakref.ref[HostCopy]] = {}
        self._watches: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def around(self, layer: torch.nn.Module) -> Callable[..., Any]:
        """What calls the forward pass of a layer in this way."""

        def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            own = {_key(tensor) for tensor in (*layer.parameters(), *layer.buffers())}
            with saved_tensors_hooks(lambda tensor: self._leave(tensor, own), _return):
                return forward(*args, **kwargs)

        return run

    def _leave(self, tensor: Tensor, own: set[int]) -> Tensor | View:
        """The tensor itself where it stays on the device, else what it is on the host."""
        if hasattr(type(tensor), "__tensor_flatten__") or _key(tensor) in own:
            return tensor
        if tensor.untyped_storage().nbytes() < LEAST_BYTES:
            return tensor
        with torch.no_grad():
            return View(
                self._copy(tensor), tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset())
            )

    def _copy(self, tensor: Tensor) -> HostCopy:
        """The copy of a tensor's storage as it is now."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._copies[key]() if key in self._copies else None
        if known is not None and known.version == tensor._version:
            return known
        made = HostCopy(tensor)
        self._copies[key] = weakref.ref(made)
        self._watches[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.live += made.nbytes
        self.highest = max(self.highest, self.live)
        weakref.finalize(made, self._gone, made.nbytes).atexit = False
        return made

    def _forget(self, key: int) -> None:
        self._copies.pop(key, None)
        self._watches.pop(key, None)

    def _gone(self, nbytes: int) -> None:
        self.live -= nbytes


def details_of(model: torch.nn.Module) -> dict[str, int]:
    """What a report adds of a model's run: the most bytes that waited on the host at once, if any did."""
    offload = getattr(model, ATTRIBUTE, None)
    return {} if offload is None else {"offloaded_bytes": offload.highest}


def _return(saved: Tensor | View) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    with torch.no_grad():
        flat = saved.copy.on_device()
        if flat.dtype != saved.dtype:
            flat = flat.view(saved.dtype)
        return flat.as_strided(saved.size, saved.stride, saved.offset)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor's storage, in one dimension."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
