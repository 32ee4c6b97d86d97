"""What transformers' caches do otherwise on CUDA: some of what they keep is in the host's memory.

The dry run has one device. So a tensor that a CUDA run would have on the host is one that is not counted, and
a move between the two is a copy. ``Tensor.to`` copies where the device differs, and not else
(ATen/native/TensorConversions.cpp, ``to_will_alias``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from mem_gpt_cli.ledger import Ledger

aten = torch.ops.aten
_ON_THE_HOST = "_memgpt_on_the_host"


class _Stream:
    """A stream that orders nothing: the dry run does one thing after the other."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait_stream(self, _: _Stream) -> None:
        """No-op."""


@contextmanager
def caches_on_cuda(ledger: Ledger) -> Iterator[None]:
    """Apply the rules of this module."""
    with offloaded_layers(ledger), moved_numbers():
        yield


@contextmanager
def offloaded_layers(ledger: Ledger) -> Iterator[None]:
    """An offloaded layer leaves the device once attention has read it; one layer ahead is brought back.

    The copies are made by ``Tensor.to`` (torch/csrc/autograd/python_variable_methods.cpp); those for the
    device are allocated on a stream of their own. Source: ``Cache.update``, ``CacheLayerMixin.offload`` and
    ``prefetch`` in transformers' ``cache_utils.py``.
    """
    from transformers.cache_utils import CacheLayerMixin

    def offload(layer: Any) -> None:
        if not layer.is_initialized:
            return
        for name in ("keys", "values"):
            with ledger.paused():
                copy = torch.empty_like(getattr(layer, name))
            ledger.keep_out(copy)
            setattr(copy, _ON_THE_HOST, True)
            setattr(layer, name, copy)

    def prefetch(layer: Any) -> None:
        if layer.is_initialized and hasattr(layer.keys, _ON_THE_HOST):
            layer.keys, layer.values = (aten._to_copy.default(x) for x in (layer.keys, layer.values))

    with (
        mock.patch.object(CacheLayerMixin, "offload", offload),
        mock.patch.object(CacheLayerMixin, "prefetch", prefetch),
        mock.patch.object(torch, "Stream", _Stream),
        mock.patch.object(torch.cuda, "default_stream", _Stream),
    ):
        yield


@contextmanager
def moved_numbers() -> Iterator[None]:
    """A window's width and a static layer's number of tokens are made on the host and moved to the device.

    Source: ``DynamicSlidingWindowLayer`` and ``StaticLayer`` in transformers' ``cache_utils.py``, their
    ``__init__`` (``torch.tensor`` without a device: torch/csrc/utils/tensor_new.cpp) and
    ``lazy_initialization``.
    """
    from transformers.cache_utils import DynamicSlidingWindowLayer, StaticLayer

    def moving(name: str, initialise: Callable[..., None]) -> Callable[..., None]:
        def initialised(layer: Any, *states: torch.Tensor) -> None:
            initialise(layer, *states)
            setattr(layer, name, aten._to_copy.default(getattr(layer, name)))

        return initialised

    with (
        _initialised(DynamicSlidingWindowLayer, "_sliding_window_tensor", moving),
        _initialised(StaticLayer, "cumulative_length", moving),
    ):
        yield


def _initialised(kind: Any, name: str, moving: Callable[..., Any]) -> Any:
    method = "lazy_initialization"
    return mock.patch.object(kind, method, moving(name, getattr(kind, method)))
