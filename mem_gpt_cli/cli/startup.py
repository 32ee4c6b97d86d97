"""What keeps a short command short, and a long one from talking of what is no matter to its user."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the garbage collector: what imports and formulas build is all in use, and it would search it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def with_collector() -> None:
    """End the pause, for what runs a model: there garbage is memory that is measured."""
    gc.enable()


def leave_all_to_the_system() -> None:
    """Hide what there is from the collector: a Python that ends searches all of it, several times over."""
    gc.freeze()


def hush_libraries() -> None:
    """Leave out what libraries log as they are imported: kernels for other builds, classes grown old.

    transformers imports torchao wherever it is installed, and bitsandbytes with its schedules.
    """
    import logging  # here, because it would take a part of a short command's time

    for name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends"):
        logging.getLogger(name).setLevel(logging.ERROR)
