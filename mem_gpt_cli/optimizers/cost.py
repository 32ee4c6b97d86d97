"""What an optimizer keeps between steps, and what a step needs for a moment.

Source: torch/optim/adamw.py and adam.py. Adam (arXiv:1412.6980) keeps two moments of every parameter and a
step counter, a tensor of one fp32 number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Implementation = Literal["loop", "foreach", "fused"]

STEP_COUNTER = 4


def implementation(asked: str, device: str) -> Implementation:
    """The code that runs: ``auto`` is a loop on CPU, foreach on CUDA (``_default_to_fused_or_foreach``)."""
    if asked == "auto":
        return "loop" if device == "cpu" else "foreach"
    return asked  # type: ignore[return-value]


def state_bytes(parameter_bytes: Sequence[int]) -> int:
    """AdamW: two moments as wide as the parameters, and a counter each."""
    return sum(2 * nbytes + STEP_COUNTER for nbytes in parameter_bytes)


def step_bytes(parameter_bytes: Sequence[int], chosen: Implementation) -> int:
    """Bytes that live only within a step, at its highest.

    ``loop`` takes the root of one parameter's second moment and its quotient, while the name ``denom`` still
    holds the quotient of the parameter before (hence their order matters); ``foreach`` takes the roots of all
    second moments at once; ``fused`` takes nothing.
    """
    if chosen == "fused" or not parameter_bytes:
        return 0
    if chosen == "foreach":
        return sum(parameter_bytes)
    return max(before + 2 * own for before, own in zip((0, *parameter_bytes), parameter_bytes, strict=False))
