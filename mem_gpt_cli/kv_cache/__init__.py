"""What is kept of the keys and values of earlier tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mem_gpt_cli.kv_cache.paged_text import use_paged_kv_cache_if_available

__all__ = ["use_paged_kv_cache_if_available"]


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is asked for: the cost side is read without."""
    if name != "use_paged_kv_cache_if_available":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mem_gpt_cli.kv_cache import paged_text

    return paged_text.use_paged_kv_cache_if_available
