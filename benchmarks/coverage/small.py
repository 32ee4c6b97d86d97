"""Scaled-down configs of every model type that transformers registers as a causal language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TABLE = yaml.safe_load(Path(__file__).with_name("small.yaml").read_text())


def model_types() -> list[str]:
    """The registry, in its order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(model_type: str) -> dict[str, Any]:
    """A config.json of that type, small enough to run in a moment."""
    from transformers import CONFIG_MAPPING

    special: dict[str, Any] = TABLE["types"].get(model_type, {})
    small = _shrunk(CONFIG_MAPPING[model_type]().to_dict())
    return _merged({"model_type": model_type, **small}, special)


def _shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that ``sizes`` names, token ids that fit the small vocabulary, and nested configs likewise.

    Everything else keeps its default, so that what is derived from the sizes is derived anew.
    """
    sizes = TABLE["sizes"]
    small: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            small[key] = {"model_type": value["model_type"], **_shrunk(value)}
        elif key in sizes and value is not None and not isinstance(value, list):
            small[key] = sizes[key]
        elif key.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value > 3:
            small[key] = 3
    return small


def _merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        elif value == "default":
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged
