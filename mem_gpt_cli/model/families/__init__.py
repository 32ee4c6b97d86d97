"""From a config.json to an ``Architecture``: one file a family of models, loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.model.families.family import Family

_MODULES = {
    "bloom": ("bloom", "mpt"),
    "deepseek": ("deepseek_v2", "deepseek_v3"),
    "falcon": ("falcon",),
    "gemma": ("gemma", "gemma2", "gemma3_text"),
    "gpt2": ("gpt2", "gpt_bigcode"),
    "gpt_neo": ("gpt_neo", "gptj", "codegen", "gpt_neox"),
    "gpt_oss": ("gpt_oss",),
    "layernorm_decoders": ("starcoder2", "stablelm", "cohere", "cohere2"),
    "llama": (
        *("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "smollm3"),
        *("granite", "ernie4_5", "exaone4"),
    ),
    "llama4": ("llama4_text",),
    "mixture": ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"),
    "opt": ("opt",),
    "phi": ("phi", "phi3"),
}
_MODULE_OF = {model_type: module for module, types in _MODULES.items() for model_type in types}

MODEL_TYPES: tuple[str, ...] = tuple(sorted(_MODULE_OF))


@cache
def find_family(model_type: str) -> Family | None:
    """The family that reads configs of this ``model_type``, ``None`` where there is none."""
    if model_type not in _MODULE_OF:
        return None
    module = import_module(f"{__name__}.{_MODULE_OF[model_type]}")
    families: tuple[Family, ...] = module.FAMILIES
    return next(family for family in families if family.model_type == model_type)


def read_architecture(config: Mapping[str, Any], where: str) -> Architecture:
    """Turn a config into numbers.

    Raises:
        UnsupportedError: for a ``model_type`` that no family reads.
        UsageError: for a value that no model can have; the sentence names ``where`` and the key.
    """
    model_type = str(config.get("model_type"))
    family = find_family(model_type)
    if family is None:
        raise UnsupportedError(
            f"{where}: the closed form does not know the model type {model_type!r}; "
            "add --trace to run its real code on fake tensors instead"
        )
    settings = family.settings(config, where)
    architecture = family.read(settings)
    padding = settings.get("pad_token_id")
    if isinstance(padding, int) and padding >= architecture.vocab:
        raise settings.refuse("pad_token_id", f"a token below 'vocab_size' ({architecture.vocab}), or null")
    return architecture
