"""One sentence on why the peak of a run is where it is."""

from __future__ import annotations

from mem_gpt_cli.report.model import Phase

_PLURAL = frozenset({"weights", "activations", "logits", "gradients", "adapters"})
_SPELLED = {"kv_cache": "KV cache"}


def cause_of(peak: Phase) -> str:
    """The peak in a sentence: phase, operator, module, and the largest component."""
    largest = max(peak.components, key=lambda name: peak.components[name])
    share = 100 * peak.components[largest] / max(1, peak.peak_allocated_bytes)
    where = f" in {peak.peak_module}" if peak.peak_module else ""
    what = _SPELLED.get(largest, largest.replace("_", " "))
    verb = "hold" if largest in _PLURAL else "holds"
    place = f"{peak.name.replace('_', ' ')}, at {peak.peak_operation}{where}"
    return f"the peak is in {place}: {what} {verb} {share:.0f}%"
