"""The one result type: what every lens answers with, and what every rendering reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1

Lens = Literal["estimate", "trace", "profile"]
Task = Literal["inference", "training"]
Provenance = Literal["measured", "traced", "formula", "calibrated", "unavailable"]

COMPONENTS: tuple[str, ...] = (
    "weights",
    "kv_cache",
    "activations",
    "logits",
    "gradients",
    "optimizer_state",
    "adapters",
    "workspace",
)
PHASES: Mapping[Task, tuple[str, ...]] = {
    "inference": ("load", "prefill", "decode"),
    "training": ("load", "forward", "backward", "optimizer_step"),
}


def components(**byte_counts: int) -> dict[str, int]:
    """All components in their order, those not named being 0 bytes.

    Raises:
        ValueError: for a name that is not a component.
    """
    unknown = set(byte_counts) - set(COMPONENTS)
    if unknown:
        raise ValueError(f"not components of a report: {sorted(unknown)}")
    return {name: int(byte_counts.get(name, 0)) for name in COMPONENTS}


@dataclass(frozen=True)
class Phase:
    """The moment of one phase at which most bytes are live.

    ``components`` add up to ``peak_allocated_bytes``. ``process_bytes`` is the peak resident set of the
    process in this phase, on a GPU the process's memory there; ``lower_bytes`` and ``upper_bytes`` bound the
    peak where the data decides it; ``reserved_bytes`` is what a caching allocator held at most, and
    ``device_bytes`` what all processes used.
    """

    name: str
    peak_allocated_bytes: int
    components: Mapping[str, int]
    peak_operation: str | None = None
    peak_module: str | None = None
    duration_s: float | None = None
    process_bytes: int | None = None
    lower_bytes: int | None = None
    upper_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None

    def __post_init__(self) -> None:
        total = sum(self.components.values())
        if total != self.peak_allocated_bytes:
            raise ValueError(
                f"phase {self.name!r}: components add up to {total} B, "
                f"the peak is {self.peak_allocated_bytes} B"
            )


@dataclass(frozen=True)
class ModelSummary:
    """Which model a report speaks of; ``parameters`` counts tied weights once."""

    name: str
    architecture: str
    parameters: int
    layers: int | None = None
    source: str | None = None


@dataclass(frozen=True)
class DeviceSummary:
    """Which device a report speaks of; ``total_bytes`` is ``None`` where it is not known."""

    type: str
    name: str
    total_bytes: int | None = None


@dataclass(frozen=True)
class Speed:
    """How fast a measured run was; each field is ``None`` where the task has no such figure."""

    tokens_per_s: float | None = None
    ttft_ms: float | None = None
    decode_ms_per_token: float | None = None
    step_s: float | None = None


@dataclass(frozen=True)
class Telemetry:
    """What the GPU's board did while a run was measured; a field is ``None`` where the driver is silent.

    Power in watts, utilization in percent of the time in which a kernel ran, temperature in degrees Celsius;
    ``interval_ms`` is the mean time between two of the ``samples``.
    """

    power_mean_w: float | None = None
    power_max_w: float | None = None
    utilization_mean_percent: float | None = None
    temperature_max_c: float | None = None
    interval_ms: float | None = None
    samples: int = 0


@dataclass(frozen=True)
class Quality:
    """What a model with its options says of a text, and how far that is from the same weights without them.

    ``tokens`` were predicted of ``text``; perplexity is per token. ``kl_divergence`` is the mean of
    KL(reference, model) in nats a token, ``top1_agreement`` the share of the tokens where both find the same
    one likeliest; both and ``reference_perplexity`` are ``None`` where nothing was compared.
    """

    perplexity: float
    tokens: int
    text: str
    reference_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None

    @property
    def perplexity_change(self) -> float | None:
        """By what part the perplexity is above the reference's: 0.01 is 1% worse."""
        if self.reference_perplexity is None:
            return None
        return self.perplexity / self.reference_perplexity - 1


@dataclass(frozen=True)
class Source:
    """How a figure was got, or was tried to be got, and why it is missing if it is."""

    how: str
    why_not: str | None = None


@dataclass(frozen=True)
class MemoryReport:
    """The answer of one lens to one recipe.

    ``allocated_bytes`` and the rest of the ladder are the highest of the whole run. ``cause`` says in a
    sentence why the peak is where it is. ``sources`` says of ``allocated_bytes``, ``reserved_bytes``,
    ``process_bytes`` and ``device_bytes`` how each was got, where ``provenance`` does not say it all.
    """

    lens: Lens
    task: Task
    recipe: Mapping[str, Any]
    model: ModelSummary
    device: DeviceSummary
    phases: tuple[Phase, ...]
    provenance: Mapping[str, Provenance]
    cause: str | None = None
    reserved_bytes: int | None = None
    process_bytes: int | None = None
    device_bytes: int | None = None
    speed: Speed | None = None
    telemetry: Telemetry | None = None
    quality: Quality | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peak(self) -> Phase:
        """The phase with the highest peak; the first of them on a tie."""
        return max(self.phases, key=lambda phase: phase.peak_allocated_bytes)

    @property
    def allocated_bytes(self) -> int:
        """The peak of live tensor bytes over all phases."""
        return self.peak.peak_allocated_bytes

    def phase(self, name: str) -> Phase | None:
        """The phase of that name, ``None`` where this report has none."""
        return next((phase for phase in self.phases if phase.name == name), None)

    def held(self, phase: Phase, component: str) -> int | None:
        """Bytes of a component at the peak of ``phase``; ``None`` where this lens cannot see it."""
        count = phase.components.get(component, 0)
        return None if count == 0 and self.provenance.get(component) == "unavailable" else count
