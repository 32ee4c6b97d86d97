"""Replacing values of a config by a recipe's ``model.config`` and ``model.dropout``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model.families import find_family
from mem_gpt_cli.model.families.decoder import DEFAULTS

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
    known = {*config, *_COMMON, *(family.defaults if family else DEFAULTS), *aliases}
    new = {aliases.get(key, key): value for key, value in config.items()}
    for key, value in replacements.items():
        if key not in known:
            nearest = get_close_matches(key, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(sorted(known))}"
            raise UsageError(f"model.config: {where} ({model_type}) has no key {key!r}; {hint}")
        new[aliases.get(key, key)] = value
    layer_key = aliases.get("num_hidden_layers", "num_hidden_layers")
    default = family.defaults.get(layer_key) if family else None
    kept = [key for key in (*_PER_LAYER, *_LAYER_INDICES, "attention_types") if key not in replacements]
    return _fit_layers(new, kept, config_layers(config, aliases, default), new.get(layer_key))


def config_layers(config: Mapping[str, Any], aliases: Mapping[str, str], default: Any) -> Any:
    """The number of layers under whichever spelling the config has, unchecked."""
    key = aliases.get("num_hidden_layers", "num_hidden_layers")
    return config.get(key, config.get("num_hidden_layers", default))


def _fit_layers(config: dict[str, Any], keys: Iterable[str], old: Any, new: Any) -> dict[str, Any]:
    """Keep per-layer lists in step with a new number of layers; wrong values are left to the reader."""
    if type(old) is not int or type(new) is not int or old == new or new < 1:
        return config
    for key in keys:
        value = config.get(key)
        if not isinstance(value, list) or not value:
            continue
        if key in _LAYER_INDICES:
            _fit_indices(config, key, old, new)
        elif key == "attention_types":
            config[key] = [[_repeat(_expand(value), new), 1]]
        elif len(value) == old:
            config[key] = _repeat(value, new)
    return config


def _fit_indices(config: dict[str, Any], key: str, old: int, new: int) -> None:
    """Cut a list of layer numbers; a longer model goes back to the rule that its config class has."""
    if new < old:
        config[key] = [index for index in config[key] if type(index) is not int or index < new]
    else:
        del config[key]


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
