"""Who can store weights how: the backends' schemes, and what ``auto`` and a key left out stand for.

Sources: bitsandbytes 0.50 ``functional.py`` (``quantize_4bit``: block sizes, absmax and codes alone) and
``nn/modules.py`` (``Int8Params``: one scale a row, no zero point); torchao 0.18 ``quantization/quant_api.py``
(``Int8WeightOnlyConfig``, ``IntxWeightOnlyConfig``) and ``prototype/quantization/int4`` (asymmetric alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mem_gpt_cli.recipe.schema import Quantization, QuantizationOverride

Scheme = Literal["int8", "int4", "nf4", "fp4"]
Backend = Literal["bitsandbytes", "native", "torchao"]
MappingType = Literal["symmetric", "asymmetric"]


@dataclass(frozen=True)
class Method:
    """How one matrix is stored, nothing left open.

    ``group_size`` is the weights that share a scale: for nf4 and fp4 a block of the matrix as it lies in
    memory, whatever its rows; for integers a stretch of one row (the inputs of one output), ``None`` a whole
    row. ``double_quant`` is false for integers.
    """

    scheme: Scheme
    backend: Backend
    mapping: MappingType
    group_size: int | None
    double_quant: bool


@dataclass(frozen=True)
class Ability:
    """What a backend can do with a scheme; of ``mappings`` the first is the default.

    ``group_sizes`` ``None`` is any, an empty tuple none: a scale a row.
    """

    mappings: tuple[MappingType, ...]
    group_size: int | None
    group_sizes: tuple[int, ...] | None
    double_quant: bool = False

    def takes(self, group_size: int | None) -> bool:
        """Whether it can have groups of that size; ``None`` is its own choice."""
        return group_size is None or self.group_sizes is None or group_size in self.group_sizes


_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
ABILITIES: Mapping[tuple[Backend, Scheme], Ability] = {
    ("bitsandbytes", "nf4"): Ability(("symmetric",), 64, _BLOCKS, double_quant=True),
    ("bitsandbytes", "fp4"): Ability(("symmetric",), 64, _BLOCKS, double_quant=True),
    ("bitsandbytes", "int8"): Ability(("symmetric",), None, ()),
    ("native", "int8"): Ability(("symmetric", "asymmetric"), None, None),
    ("native", "int4"): Ability(("symmetric", "asymmetric"), 64, None),
    ("torchao", "int8"): Ability(("symmetric", "asymmetric"), None, ()),
    ("torchao", "int4"): Ability(("asymmetric",), 128, (32, 64, 128)),
}
"""In the order in which ``auto`` looks for one that can do what is asked."""


EMBEDDINGS: tuple[Backend, ...] = ("native",)
"""Who stores embeddings: bitsandbytes' cannot share their matrix with a head, torchao's are linear layers."""


def method(
    section: Quantization, override: QuantizationOverride | None = None, *, embedding: bool = False
) -> Method | None:
    """What the section, or an override of it, asks for; ``None`` keeps the weights in full.

    What an override leaves out is as in the section, as far as its scheme knows it: the section's backend,
    mapping, group size and double quantization do not follow to a scheme that has no such thing, nor its
    backend to an ``embedding`` that it cannot store. A combination that no backend knows is answered all the
    same (``refusals.quantization`` refuses it).
    """
    wanted = _wanted(section, override, embedding=embedding)
    if wanted["scheme"] == "none":
        return None
    backend = _backend(wanted, embedding=embedding)
    ability = ABILITIES.get((backend, wanted["scheme"]), Ability(("symmetric",), None, None))
    double_quant = wanted["double_quant"]
    return Method(
        scheme=wanted["scheme"],
        backend=backend,
        mapping=wanted["mapping"] or ability.mappings[0],
        group_size=wanted["group_size"] or ability.group_size,
        double_quant=ability.double_quant if double_quant is None else double_quant,
    )


def abilities(scheme: Any, *, embedding: bool = False) -> dict[Backend, Ability]:
    """The backends that know the scheme, in the order of ``auto``."""
    return {
        backend: ability
        for (backend, known), ability in ABILITIES.items()
        if known == scheme and (not embedding or backend in EMBEDDINGS)
    }


def _wanted(
    section: Quantization, override: QuantizationOverride | None, *, embedding: bool
) -> dict[str, Any]:
    """The keys of the override, then those of the section that the override's scheme knows."""
    keys = tuple(QuantizationOverride.model_fields)
    if override is None:
        return {key: getattr(section, key) for key in keys}
    wanted = {key: getattr(override, key) for key in keys}
    wanted["scheme"] = wanted["scheme"] or section.scheme
    able = abilities(wanted["scheme"], embedding=embedding)
    if wanted["backend"] is None:
        wanted["backend"] = section.backend if section.backend in able else "auto"
    if wanted["backend"] in able:
        able = {wanted["backend"]: able[wanted["backend"]]}
    if wanted["mapping"] is None and any(section.mapping in ability.mappings for ability in able.values()):
        wanted["mapping"] = section.mapping
    if wanted["group_size"] is None and any(each.takes(section.group_size) for each in able.values()):
        wanted["group_size"] = section.group_size
    if wanted["double_quant"] is None and any(ability.double_quant for ability in able.values()):
        wanted["double_quant"] = section.double_quant
    return wanted


def _backend(wanted: Mapping[str, Any], *, embedding: bool) -> Backend:
    """The backend that is named, or the first that can do all that is asked, else the scheme's first."""
    if wanted["backend"] != "auto":
        named: Backend = wanted["backend"]
        return named
    able = abilities(wanted["scheme"], embedding=embedding) or abilities(wanted["scheme"])
    for backend, ability in able.items():
        fits = wanted["mapping"] is None or wanted["mapping"] in ability.mappings
        if fits and ability.takes(wanted["group_size"]):
            return backend
    return next(iter(able))
