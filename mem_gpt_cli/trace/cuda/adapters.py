"""Where training over frozen weights asks which device it is on.

Sources: torch/__init__.py and torch/amp (``torch.is_autocast_enabled``), bitsandbytes 0.50
``autograd/_functions.py`` (``matmul``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

_LAYERS = "mem_gpt_cli.quantization.bitsandbytes_layers"


@contextmanager
def autocast_without_a_name(enabled: Callable[..., bool] = torch.is_autocast_enabled) -> Iterator[None]:
    """``torch.is_autocast_enabled()`` means CUDA's autocast, which in the dry run is the CPU's.

    peft's layers over bitsandbytes' ask it, and leave the widths of what they add to autocast where it is on
    (peft 0.21 tuners/lora/bnb.py); torch/amp/autocast_mode.py.
    """

    def on_cuda(*device: str) -> bool:
        return enabled(*(device or ("cpu",)))

    with mock.patch.object(torch, "is_autocast_enabled", on_cuda):
        yield


@contextmanager
def int8_in_training() -> Iterator[None]:
    """bitsandbytes' int8 products round their input in training too; the CPU's write the matrix out instead.

    bitsandbytes ``autograd/_functions.py`` (``matmul``); the product of integers ends in
    aten/src/ATen/native's conversions, as in inference.
    """
    with ExitStack() as stack:
        layers = sys.modules.get(_LAYERS)  # it is there where a model has such layers
        if layers is not None:
            stack.enter_context(mock.patch.object(layers, "rounds_inputs", _always))
        yield


def _always(_: Any) -> bool:
    return True
