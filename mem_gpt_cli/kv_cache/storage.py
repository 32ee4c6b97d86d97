"""What a model's cache holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def cache_tensors(cache: Any) -> Iterator[torch.Tensor]:
    """Every tensor that a cache object of transformers keeps, whatever its kind (keys, values, states)."""
    seen: set[int] = set()
    yield from _tensors(cache, seen)


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if value is None or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, seen)
    elif type(value).__module__.startswith("transformers."):
        yield from _tensors(getattr(value, "__dict__", None), seen)
