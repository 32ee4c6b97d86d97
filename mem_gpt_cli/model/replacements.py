"""Replacing values of a config by a recipe's ``model.config`` and ``model.dropout``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model.families import find_family
from mem_gpt_cli.model.families.family import Family

# Keys of transformers' base config class, and rotary settings in their old and new spelling.
_COMMON = frozenset(
    (
        *("initializer_range", "use_cache", "torch_dtype", "dtype", "architectures", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
    )
)
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers")
_LAYER_INDICES = ("moe_layers", "mlp_only_layers")
_BY_LAYER = (*_PER_LAYER, *_LAYER_INDICES, "attention_types")
_DROPOUT = re.compile(r"^(?!classifier|summary).*(dropout|pdrop)$")


def replace(config: Mapping[str, Any], replacements: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config with each replacement under the family's own spelling of its key.

    A new number of layers cuts lists that have one entry a layer, or goes on with their pattern.

    Raises:
        UsageError: for a key that this model's config does not have; the sentence names the nearest one.
    """
    model_type = str(config.get("model_type"))
    family = find_family(model_type)
    aliases = family.aliases if family else {}
    known = {*config, *_COMMON, *_keys_of(family), *aliases}
    new = {aliases.get(key, key): value for key, value in config.items()}
    for key, value in replacements.items():
        if key not in known:
            nearest = get_close_matches(key, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(sorted(known))}"
            raise UsageError(f"model.config: {where} ({model_type}) has no key {key!r}; {hint}")
        new[aliases.get(key, key)] = value
    if "vocab_size" in replacements and "pad_token_id" not in replacements:
        new["pad_token_id"] = None  # the old vocabulary's may lie outside the new one
    layer_key = aliases.get("num_hidden_layers", "num_hidden_layers")
    if layer_key in new and family:
        before = family.settings(config, where)
        kept = {key: before.get(key) for key in _BY_LAYER if key not in replacements}
        new |= _fit_layers(kept, before.get(layer_key), new[layer_key])
    return new


def _keys_of(family: Family | None) -> Mapping[str, Any]:
    """The keys that a family reads; of an unknown model type those that most decoders have."""
    if family is not None:
        return family.defaults
    from mem_gpt_cli.model.families.decoder import DEFAULTS

    return DEFAULTS


def _fit_layers(lists: Mapping[str, Any], old: Any, new: Any) -> dict[str, Any]:
    """Per-layer lists in step with a new number of layers; wrong values are left to the reader.

    A list of layer numbers is cut; for a longer model it goes back to the rule of its config class.
    """
    if type(old) is not int or type(new) is not int or old == new or new < 1:
        return {}
    fitted: dict[str, Any] = {}
    for key, value in lists.items():
        if not isinstance(value, list) or not value:
            continue
        if key in _LAYER_INDICES:
            fitted[key] = [index for index in value if index < new] if new < old else None
        elif key == "attention_types":
            fitted[key] = [[_repeat(_expand(value), new), 1]]
        elif len(value) == old:
            fitted[key] = _repeat(value, new)
    return fitted


def _repeat(values: list[Any], length: int) -> list[Any]:
    """Go on with the shortest pattern that makes ``values``, to ``length`` entries."""
    period = next(
        p for p in range(1, len(values) + 1) if all(v == values[i % p] for i, v in enumerate(values))
    )
    return [values[index % period] for index in range(length)]


def _expand(attention_types: list[Any]) -> list[Any]:
    """GPT-Neo's ``[[names, times], ...]`` as one name a layer."""
    return [name for names, times in attention_types for _ in range(times) for name in names]


def set_dropout(config: Mapping[str, Any], probability: float) -> dict[str, Any]:
    """The config with every dropout probability that its family knows set to ``probability``."""
    family = find_family(str(config.get("model_type")))
    known = {*config, *(family.defaults if family else ())}
    return {**config, **{key: probability for key in known if _DROPOUT.match(key)}}
