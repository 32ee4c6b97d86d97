"""Reading a config.json: as JSON with positions, and down to the decoder that it describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import Position, RecipeError, UsageError
from mem_gpt_cli.model.families import find_family

# A wrapper's text part, where its text_config leaves the model type out (transformers' sub_configs).
_TEXT_MODEL_TYPES = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "llava": "llama",
}
_DECODER_CLASSES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def read_config(path: Path) -> dict[str, Any]:
    """The mapping that a config.json holds.

    Raises:
        RecipeError: with line and column, where the file is not one JSON object with each key once.
        UsageError: where it cannot be read as text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8, so this is not a config.json") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a readable config.json") from None

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise RecipeError(f"the key {key!r} is given twice; keep one", _second(text, key, path))
            seen[key] = value
        return seen

    try:
        config = json.loads(text, object_pairs_hook=object_of)
    except json.JSONDecodeError as error:
        problem = error.msg[:1].lower() + error.msg[1:]
        position = Position(str(path), error.lineno, error.colno)
        raise RecipeError(f"this is not JSON: {problem}; mend the file", position) from None
    except RecursionError:
        raise UsageError(f"{path}: its values are nested too deeply for a config.json") from None
    if not isinstance(config, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(config), "a single value")
        raise RecipeError(
            f"a config.json is one object of keys and values, this is {kind}", Position(str(path), 1, 1)
        )
    return config


def _second(text: str, key: str, path: Path) -> Position:
    """Where the last of the equal keys stands."""
    offset = text.rfind(json.dumps(key))
    before = text[: max(offset, 0)]
    return Position(str(path), before.count("\n") + 1, offset - before.rfind("\n"))


def decoder_part(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The decoder's own config, and what a reader should know of what was left out.

    Of a multimodal model the text part is taken; of a quantized one the shape, at the recipe's dtype.

    Raises:
        UsageError: where the config has no model type, or is not that of a decoder-only language model.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise UsageError(f"{where}: 'model_type' is missing, so it is not known which model this describes")
    text = config.get("text_config")
    if isinstance(text, Mapping) and find_family(model_type) is None:
        inner = {"model_type": _TEXT_MODEL_TYPES.get(model_type), **text}
        part, notes = decoder_part(inner, f"{where}: text_config")
        note = f"{where} describes a multimodal model ({model_type}): its text part is taken alone"
        return part, (note, *notes)
    _refuse_what_is_no_decoder(config, model_type, where)
    quantization = config.get("quantization_config")
    if quantization is None:
        return dict(config), ()
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    note = f"{where}: the stored weights are quantized ({method}); here they are counted at model.dtype"
    return {key: value for key, value in config.items() if key != "quantization_config"}, (note,)


def _refuse_what_is_no_decoder(config: Mapping[str, Any], model_type: str, where: str) -> None:
    if config.get("is_encoder_decoder") is True:
        raise UsageError(
            f"{where}: {model_type!r} is an encoder-decoder; memgpt takes decoder-only models, "
            "see `memgpt models`"
        )
    classes = config.get("architectures")
    if find_family(model_type) or not isinstance(classes, list) or not classes:
        return
    if not any(part in str(name) for name in classes for part in _DECODER_CLASSES):
        raise UsageError(
            f"{where}: {classes[0]} is not a causal language model; memgpt takes decoder-only models, "
            "see `memgpt models`"
        )
