"""How weights are stored in fewer bits, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mem_gpt_cli.quantized_model import QuantizedModel

__all__ = ["QuantizedModel"]


def __getattr__(name: str) -> Any:
    """Hand out the facade's class, which loads models and so stands above this room."""
    if name != "QuantizedModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mem_gpt_cli.quantized_model import QuantizedModel

    return QuantizedModel
