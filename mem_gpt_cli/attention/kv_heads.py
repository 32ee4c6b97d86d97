"""Fewer key-value heads by mean-pooling, after "GQA" (arXiv:2305.13245); imports torch to pool alone.

A group of key-value heads becomes one whose projection is the mean of theirs. What comes out is a model of
its own, with a config of its own, so that every lens sees nothing but another model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.model import ModelSource, resolve
from mem_gpt_cli.recipe.problems import position_of
from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from torch import Tensor

Convert = Callable[[str, "Tensor"], "Iterator[tuple[str, Tensor]]"]
"""One stored tensor by its name to the tensors that the converted model has instead."""

_KEY = ("attention", "kv_heads")
POOLED = frozenset(
    (
        *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "olmo", "smollm3"),
        *("granite", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "starcoder2", "stablelm"),
        *("cohere", "cohere2", "phi", "gpt_oss", "llama4_text"),
    )
)
"""Families with ``num_key_value_heads`` in their config and plain ``k_proj`` and ``v_proj`` matrices."""
_KEY_NORMS = {"stablelm": "qk_layernorm", "cohere": "use_qk_norm"}
"""Switches of a norm with weights for each key head of its own, which have no mean."""
_WHY_NOT = {
    "phi3": "holds queries, keys and values in one matrix",
    "olmo2": "norms all key heads together",
    "olmo3": "norms all key heads together",
    "olmoe": "norms all key heads together",
    "deepseek_v2": "compresses keys and values and has no such heads",
    "deepseek_v3": "compresses keys and values and has no such heads",
}
_GPT2_SCALING = ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
"""Ways of GPT-2 to scale its scores that GPT-BigCode does not have."""


def source_of(recipe: Recipe) -> ModelSource:
    """The model that a recipe runs: the one it names, with as many key-value heads as it asks for.

    Raises:
        RecipeError: for a number of heads that this model cannot be converted to.
        UsageError, EnvironmentUnavailableError: as ``resolve``.
    """
    source = resolve(recipe.model)
    heads = recipe.attention.kv_heads
    return source if heads is None else _converted(source, heads, recipe)


def converted_weights(source: ModelSource, recipe: Recipe) -> Convert | None:
    """What to do with each stored tensor of the model that ``source_of`` returned; ``None``: nothing.

    A tensor that stays comes back as it is; a pooled one is a new tensor in the stored one's dtype. The
    names are those of transformers' state dict.

    Args:
        source: the source as ``source_of`` gave it.
        recipe: the recipe that asked for it.
    """
    heads = recipe.attention.kv_heads
    if heads is None:
        return None
    before = resolve(recipe.model).architecture.layers[0].attention
    width = source.architecture.layers[0].attention.head_dim
    if source.config["model_type"] == "gpt_bigcode":
        return _gpt2_tensors(before.heads, width)
    return _pooled_tensors(before.kv_heads, heads, width)


def _converted(source: ModelSource, heads: int, recipe: Recipe) -> ModelSource:
    """The source with the config of the converted model."""
    config, model_type = source.config, str(source.config.get("model_type"))

    def refused(reason: str) -> RecipeError:
        return RecipeError(f"attention.kv_heads: {reason}", position_of(_KEY, recipe.text))

    if model_type != "gpt2" and model_type not in POOLED:
        reason = _WHY_NOT.get(model_type, "is not known to hold keys and values in matrices of their own")
        raise refused(f"{source.name} cannot be converted, {model_type} {reason}: leave it out")
    switch = _KEY_NORMS.get(model_type)
    if switch and config.get(switch):
        raise refused(f"{source.name} cannot be converted, it norms each key head by itself: leave it out")
    own = source.architecture.layers[0].attention
    if heads >= own.kv_heads:
        raise refused(f"{source.name} has {own.kv_heads} of them: write fewer, or leave it out")
    if own.kv_heads % heads:
        raise refused(
            f"the {own.kv_heads} key-value heads of {source.name} make no {heads} equal groups: "
            f"write a divisor of {own.kv_heads}"
        )
    if model_type == "gpt2" and heads != 1:
        raise refused(
            f"{source.name} is GPT-2, which transformers has with all key-value heads or, as GPT-BigCode, "
            "with one: write 1"
        )
    if model_type == "gpt2" and any(config.get(key) for key in _GPT2_SCALING):
        raise refused(f"{source.name} scales its scores layer by layer, GPT-BigCode does not: leave it out")
    note = (
        f"{source.name} was converted from {own.kv_heads} to {heads} key-value heads by mean-pooling: "
        "it says little of sense until it is trained again (uptraining)"
    )
    new = _gpt_bigcode(config) if model_type == "gpt2" else {**config, "num_key_value_heads": heads}
    return replace(source, config=new, notes=(*source.notes, note))


_GPT2_ALONE = ("architectures", "task_specific_params", *_GPT2_SCALING)
"""Keys of GPT-2's config that GPT-BigCode's does not have."""


def _gpt_bigcode(config: Mapping[str, Any]) -> dict[str, Any]:
    """GPT-2's config as that of GPT-BigCode, the same decoder with one key-value head."""
    return {
        **{key: value for key, value in config.items() if key not in _GPT2_ALONE},
        "model_type": "gpt_bigcode",
        "architectures": ["GPTBigCodeForCausalLM"],
        "multi_query": True,
        "activation_function": config.get("activation_function") or "gelu_new",
    }


def _pooled_tensors(before: int, after: int, width: int) -> Convert:
    def convert(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        module = name.rpartition(".")[0].rpartition(".")[2]
        yield name, pooled(tensor, before, after, width) if module in ("k_proj", "v_proj") else tensor

    return convert


def pooled(tensor: Tensor, before: int, after: int, width: int) -> Tensor:
    """The mean of each group of heads: ``[before * width, ...]`` to ``[after * width, ...]``."""
    rest = tensor.shape[1:]
    means = tensor.reshape(after, before // after, width, *rest).float().mean(1)
    return means.reshape(after * width, *rest).to(tensor.dtype)


def _gpt2_tensors(heads: int, width: int) -> Convert:
    """GPT-2's ``Conv1D`` weights are transposed to those of ``nn.Linear``; names stay."""

    def convert(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        import torch

        module = name.rpartition(".")[0].rpartition(".")[2]
        if module in ("c_attn", "c_proj", "c_fc") and name.endswith(".weight"):
            tensor = tensor.t()
        if module == "c_attn":
            q, k, v = tensor.chunk(3)
            tensor = torch.cat([q, pooled(k, heads, 1, width), pooled(v, heads, 1, width)])
        yield name, tensor

    return convert
