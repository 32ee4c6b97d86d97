"""Which ways of storing weights exclude each other, and which keys a scheme would ignore."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from mem_gpt_cli.recipe.document import KeyPath
from mem_gpt_cli.recipe.methods import Ability, Backend, Method, abilities, method
from mem_gpt_cli.recipe.methods import Scheme as Quantized
from mem_gpt_cli.recipe.refusals import Lens, Refusal
from mem_gpt_cli.recipe.schema import Quantization, QuantizationOverride, Recipe

_SECTION: KeyPath = ("quantization",)
_DETAILS = ("backend", "mapping", "group_size", "double_quant")
_Keys = Quantization | QuantizationOverride
_Able = Mapping[Backend, Ability]


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:  # noqa: ARG001
    """What no backend can store, and keys that the scheme would ignore, in the section and in overrides."""
    section = recipe.quantization
    if recipe.task == "training" and recipe.adapters.kind != "qlora":
        yield from _in_training(section)
        return
    own = method(section)
    overridden = {
        pattern: method(section, override, embedding=pattern == "embeddings")
        for pattern, override in section.overrides.items()
    }
    if own is not None:
        yield from _impossible(_SECTION, section, own, recipe)
    elif not any(overridden.values()):
        yield from _ignored(_SECTION, section, "nothing is quantized: write a scheme, or leave it out")
    for pattern, override in section.overrides.items():
        path = (*_SECTION, "overrides", pattern)
        found = overridden[pattern]
        if found is not None:
            yield from _impossible(path, override, found, recipe, embedding=pattern == "embeddings")
        elif override.scheme == "none":
            yield from _ignored(path, override, "scheme none keeps these weights in full: leave it out")
        else:
            yield path, "changes nothing, because quantization.scheme is none: give it a scheme of its own"


def _in_training(section: Quantization) -> Iterator[Refusal]:
    """Integers have no gradient: quantized weights are trained as a frozen base under adapters alone."""
    mend = "quantized weights cannot be trained: write adapters.kind: qlora, or none, or task: inference"
    if section.scheme != "none":
        yield (*_SECTION, "scheme"), mend
        return
    yield from _ignored(_SECTION, section, "nothing is quantized: leave it out, or write task: inference")
    for pattern, override in section.overrides.items():
        if override.scheme in (None, "none"):
            yield (
                (*_SECTION, "overrides", pattern),
                "changes nothing, because nothing is quantized: delete it",
            )
        else:
            yield (*_SECTION, "overrides", pattern, "scheme"), mend


def _ignored(path: KeyPath, keys: _Keys, reason: str) -> Iterator[Refusal]:
    """Every key beside the scheme that says something."""
    for name in _DETAILS:
        if getattr(keys, name) not in (None, "auto"):
            yield (*path, name), f"changes nothing, because {reason}"


def _impossible(
    path: KeyPath, keys: _Keys, found: Method, recipe: Recipe, *, embedding: bool = False
) -> Iterator[Refusal]:
    """What the backend cannot do with the scheme; ``keys`` are those written here, ``found`` what they mean.

    A key that the section hands on to an override is refused in the section alone: ``method`` leaves behind
    what the override's scheme does not know.
    """
    able = abilities(found.scheme, embedding=embedding)
    if found.backend not in able:
        yield (*path, "scheme" if keys.backend in (None, "auto") else "backend"), _no_backend(found, able)
        return
    ability = able[found.backend]
    if keys.mapping is not None and found.mapping not in ability.mappings:
        yield (*path, "mapping"), _wrong_mapping(found, able)
    if keys.group_size is not None and not ability.takes(keys.group_size):
        yield (*path, "group_size"), _wrong_group(found, ability, able)
    if keys.double_quant is not None and not ability.double_quant:
        yield (
            (*path, "double_quant"),
            f"belongs to nf4 and fp4, the scales of {found.scheme} are not quantized: leave it out",
        )
    if found.backend == "torchao" and recipe.task == "training":
        yield (
            (*path, "backend"),
            "torchao's layers hand no gradient on: choose bitsandbytes or native, or task: inference",
        )
    elif found.backend == "torchao" and found.scheme == "int4" and recipe.device.type != "cpu":
        yield (*path, "backend"), "torchao's int4 kernel is the CPU's alone: choose native, or device: cpu"


def _no_backend(found: Method, able: _Able) -> str:
    """Why a backend does not have the scheme, and who does."""
    schemes: Sequence[Quantized] = get_args(Quantized)
    if found.backend in abilities(found.scheme):
        stored = " and ".join(each for each in schemes if abilities(each, embedding=True))
        return f"embeddings are stored in {stored} by native alone, not by {found.backend} in {found.scheme}"
    known = ", ".join(each for each in schemes if found.backend in abilities(each))
    choice = f"choose {_or(able)}, or auto" if able else "choose one of those"
    return f"{found.backend} has no {found.scheme} (it has {known}): {choice}"


def _wrong_mapping(found: Method, able: _Able) -> str:
    """Why a backend does not have the mapping, and who does."""
    if found.scheme in ("nf4", "fp4"):
        return (
            f"{found.scheme} picks from a table of values around 0 and has no zero point: "
            "leave it out, or choose int8 or int4"
        )
    others = [backend for backend, ability in able.items() if found.mapping in ability.mappings]
    reason = "stores a zero point" if found.mapping == "symmetric" else "stores no zero point"
    return f"{_whose(found)} {found.scheme} {reason}: choose backend {_or(others)}, or leave it out"


def _wrong_group(found: Method, ability: Ability, able: _Able) -> str:
    """Which group sizes there are."""
    if ability.group_sizes:
        sizes = ", ".join(map(str, ability.group_sizes))
        return f"{_whose(found)} {found.scheme} has groups of {sizes}, not of {found.group_size}"
    others = [backend for backend, each in able.items() if each.takes(found.group_size)]
    choice = f"leave it out, or choose backend {_or(others)}"
    return f"{_whose(found)} {found.scheme} has one scale a row: {choice}"


def _whose(found: Method) -> str:
    return f"{found.backend}'" if found.backend.endswith("s") else f"{found.backend}'s"


def _or(names: Mapping[Backend, Ability] | list[Backend]) -> str:
    return " or ".join(names)
