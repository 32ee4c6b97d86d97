"""What a CUDA run keeps in the host's memory; in the dry run all tensors are on one fake device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from mem_gpt_cli.checkpointing import offload
from mem_gpt_cli.ledger import Ledger


@contextmanager
def host_tensors(ledger: Ledger) -> Iterator[None]:
    """``torch.tensor`` without a device or for ``"cpu"``, and random states, are host memory and not counted.

    So AdamW's step counters do not count in its loop and foreach code (torch/optim/adam.py, ``_init_group``:
    ``torch.tensor(0.0, device="cpu")``, but ``torch.zeros((), device=p.device)`` where it is fused), nor what
    checkpointing keeps of the random generators (torch/utils/checkpoint.py, ``get_device_states``). Code that
    means the run's device passes on the device of a tensor, which is no text.
    """

    def of_the_host(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            with ledger.paused():
                tensor = function(*args, **kwargs)
            if not isinstance(kwargs.get("device"), torch.device):
                ledger.keep_out(tensor)
            return tensor

        return made

    with (
        mock.patch.object(torch, "tensor", of_the_host(torch.tensor)),
        mock.patch.object(torch, "get_rng_state", of_the_host(torch.get_rng_state)),
    ):
        yield


@contextmanager
def offloaded_activations(ledger: Ledger) -> Iterator[None]:
    """What layers save for backward and a recipe offloads is a copy in the host's memory and not counted.

    The copy takes nothing on the device, because it is of bytes that lie together
    (``copy_requires_temporaries`` in ATen/native/cuda/Copy.cu). What backward brings back is made there.
    """

    def to_host(flat: torch.Tensor) -> torch.Tensor:
        with ledger.paused():
            copy = torch.empty_like(flat)
        ledger.keep_out(copy)
        return copy

    with mock.patch.object(offload, "to_host", to_host):
        yield
