"""Lens 2: the real workload on fake tensors."""

from mem_gpt_cli.trace.lens import trace

__all__ = ["trace"]
