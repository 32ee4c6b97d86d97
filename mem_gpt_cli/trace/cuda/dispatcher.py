"""Python kernels in torch's dispatcher for the time of a ``with`` block.

A kernel in the dispatcher is found by every caller: functions and methods, C++ code that calls the operator,
backward, and the recomputation of a checkpoint. A patched Python function is found by some of these only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.library import Library


@contextmanager
def kernels(dispatch_key: str, functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Run the aten operators by these functions where a dispatch key selects them.

    The blocks may be nested: the innermost holds, and leaving it brings back what was there before.

    Args:
        dispatch_key: e.g. ``AutocastCPU``; ``CompositeImplicitAutograd`` holds what torch composes of others.
        functions: by the operator's name with its overload, e.g. ``softmax.int``.
    """
    library = Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            for name, function in functions.items():
                library.impl(name, function, dispatch_key, allow_override=True)
        yield
    finally:
        library._destroy()
