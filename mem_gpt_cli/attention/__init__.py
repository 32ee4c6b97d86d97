"""Which attention code runs: torch's kernels, flash-attn, hashing, fewer key-value heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mem_gpt_cli.attention.use_flash import use_flash_attention_if_available

__all__ = ["use_flash_attention_if_available"]


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is asked for: the cost side is read without."""
    if name != "use_flash_attention_if_available":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mem_gpt_cli.attention import use_flash

    return use_flash.use_flash_attention_if_available
