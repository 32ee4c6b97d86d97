"""What checkpointing keeps of the forward pass, and what it computes twice."""

from __future__ import annotations


def kept_bytes(policy: str, layers: int, batch: int, tokens: int, hidden: int, item: int) -> int:
    """Bytes of the layer inputs that ``full`` checkpointing keeps (arXiv:1604.06174), 0 for ``none``."""
    return layers * batch * tokens * hidden * item if policy == "full" else 0


def recomputed_forwards(policy: str, layers: int) -> int:
    """Layers whose forward pass runs a second time in backward."""
    return layers if policy == "full" else 0
