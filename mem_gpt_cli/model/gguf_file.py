"""The config of a GGUF file, from its metadata, as transformers' GGUF loader would make it.

Source of the mapping: transformers' ``integrations/ggml.py``; of the keys: the GGUF specification.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import UnsupportedError, UsageError
from mem_gpt_cli.model.gguf_metadata import read_head

_KEYS: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_HEAD_DIM = {"attention.key_length": "head_dim"}
_EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}


@dataclass(frozen=True)
class _Mapping:
    """How a GGUF architecture becomes a ``model_type``: ``keys`` beside ``common`` ones, fixed ``values``."""

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    common: Mapping[str, str] = field(default_factory=lambda: _KEYS)


_GPT2_KEYS = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}

ARCHITECTURES: Mapping[str, _Mapping] = {
    "llama": _Mapping("llama", {"rope.dimension_count": "head_dim", **_HEAD_DIM}),
    "qwen2": _Mapping("qwen2"),
    "qwen2moe": _Mapping("qwen2_moe", {**_EXPERTS, "expert_feed_forward_length": "moe_intermediate_size"}),
    "qwen3": _Mapping("qwen3", _HEAD_DIM),
    "qwen3moe": _Mapping(
        "qwen3_moe",
        {**_EXPERTS, **_HEAD_DIM, "expert_feed_forward_length": "moe_intermediate_size"},
        {"norm_topk_prob": True},
    ),
    "gemma2": _Mapping("gemma2", {**_HEAD_DIM, **_WINDOW}),
    "gemma3": _Mapping("gemma3_text", {**_HEAD_DIM, **_WINDOW}),
    "phi3": _Mapping("phi3"),
    "starcoder2": _Mapping("starcoder2", {"attention.layer_norm_epsilon": "norm_epsilon"}),
    "gpt2": _Mapping("gpt2", common=_GPT2_KEYS),
}


def read_gguf_config(path: Path) -> dict[str, Any]:
    """The Hugging Face config that a GGUF file's metadata amounts to.

    The width of the vocabulary and whether the output matrix is tied are read off the tensors.

    Raises:
        UsageError: where the file is no GGUF file or lacks what a model needs.
        UnsupportedError: for an architecture whose metadata is not mapped.
    """
    try:
        head = read_head(path)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: this is not a GGUF file that can be read: {error}") from None
    architecture = str(head.metadata.get("general.architecture", ""))
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"{path}: GGUF files of the architecture {architecture!r} are not read; those of "
            f"{', '.join(sorted(ARCHITECTURES))} are: name the model's config.json instead"
        )
    prefix = f"{architecture}."
    values = {
        name.removeprefix(prefix): value for name, value in head.metadata.items() if name.startswith(prefix)
    }
    return _config(ARCHITECTURES[architecture], values, head.shapes, path)


FOUR_BITS_OR_FEWER: Mapping[int, str] = {
    2: "Q4_0", 3: "Q4_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    39: "MXFP4",
}  # fmt: skip
"""Formats whose weights lie on a grid of 16 values or fewer; source: ``ggml_type`` in ggml.h."""


@dataclass(frozen=True)
class Grid:
    """That ``share`` of a file's weights lie on a grid of 4 bits or fewer, in these ``formats``."""

    share: float
    formats: tuple[str, ...]


def coarse_grid(path: Path) -> Grid | None:
    """Whether, and how many of, a GGUF file's weights were quantized to 4 bits or fewer; ``None`` for none.

    Raises:
        ValueError: where the file is no GGUF file.
        OSError: where it cannot be opened.
    """
    head = read_head(path)
    counts = {name: math.prod(shape) for name, shape in head.shapes.items()}
    coarse = [name for name, number in head.types.items() if number in FOUR_BITS_OR_FEWER]
    if not coarse:
        return None
    formats = sorted({FOUR_BITS_OR_FEWER[head.types[name]] for name in coarse})
    return Grid(sum(counts[name] for name in coarse) / sum(counts.values()), tuple(formats))


def _config(
    mapping: _Mapping, values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], path: Path
) -> dict[str, Any]:
    if "token_embd.weight" not in tensors:
        raise UsageError(f"{path}: this GGUF file has no token embedding, so it holds no language model")
    if mapping.model_type == "llama" and values.get("expert_count"):
        mapping = _Mapping("mixtral", {**mapping.keys, **_EXPERTS})
    keys = {**mapping.common, **mapping.keys}
    return {
        "model_type": mapping.model_type,
        "vocab_size": tensors["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in tensors,
        **mapping.values,
        **{keys[name]: values[name] for name in keys if name in values},
        **({"attention_bias": True} if _has_bias(mapping, tensors) else {}),
    }


def _has_bias(mapping: _Mapping, tensors: Mapping[str, tuple[int, ...]]) -> bool:
    """Llama's config can ask for biases in attention; the other families fix them."""
    return mapping.model_type == "llama" and "blk.0.attn_q.bias" in tensors
