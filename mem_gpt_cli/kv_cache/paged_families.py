"""Whose attention reads pages (no torch)."""

from __future__ import annotations

FAMILIES = frozenset({"gpt2", "llama"})
"""Families whose paged generation is held, token for token, against the plain one."""


def why_not_family(model_type: str, windowed: bool) -> str | None:
    """Why continuous batching cannot run a family; ``None`` where it can.

    Args:
        model_type: the family, as its config names it.
        windowed: whether a layer looks through a sliding window or at chunks.
    """
    if windowed:
        return (
            "its layers look through a sliding window, and a pool keeps whole sequences: choose "
            "kv_cache.kind=dynamic"
        )
    if model_type not in FAMILIES:
        known = " and ".join(sorted(FAMILIES))
        return f"its attention is not known to read pages, that of {known} is: choose kv_cache.kind=dynamic"
    return None
