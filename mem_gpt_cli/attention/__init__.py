"""Which attention code runs, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mem_gpt_cli.attention.flash_text import use_flash_attention_if_available

__all__ = ["use_flash_attention_if_available"]


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is asked for: the cost side is read without."""
    if name != "use_flash_attention_if_available":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mem_gpt_cli.attention import flash_text

    return flash_text.use_flash_attention_if_available
