"""The layout that Llama set and most later decoders follow: their common sizes, attention and assembly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model.architecture import Architecture, Attention, Layer
from mem_gpt_cli.model.families.tensors import Tensors, embedding, linear, output_head, rmsnorm, rotary
from mem_gpt_cli.model.settings import Settings

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
LAYER_TYPES = frozenset((FULL, SLIDING, CHUNKED))

QkNorm = Literal["head", "projection"]

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": None,
    "attention_dropout": 0.0,
}


@dataclass(frozen=True)
class Sizes:
    """The sizes that decoders of this layout name alike; ``rotary_dim`` of ``head_dim`` are rotated."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int

    @classmethod
    def of(cls, config: Settings) -> Sizes:
        """Read and check them; without ``head_dim`` the heads share the hidden size.

        Raises:
            UsageError: where heads do not divide, or a value is not a size.
        """
        heads = config.size("num_attention_heads")
        kv_heads = config.size("num_key_value_heads", heads)
        if heads % kv_heads:
            raise UsageError(
                f"{config.where}: 'num_attention_heads' ({heads}) is not a multiple of "
                f"'num_key_value_heads' ({kv_heads}): give each key-value head as many query heads"
            )
        head_dim = config.optional_size("head_dim") or config.divisible("hidden_size", "num_attention_heads")
        return cls(
            vocab=config.size("vocab_size"),
            hidden=config.size("hidden_size"),
            layers=config.size("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rotary_dim=int(head_dim * rotary_share(config)),
        )


def rotary_share(config: Settings, key: str = "partial_rotary_factor") -> float:
    """The share of each head that is rotated; new configs hold it in ``rope_parameters``."""
    inside = config.section("rope_parameters").get("partial_rotary_factor")
    if isinstance(inside, int | float) and not isinstance(inside, bool) and 0 < inside <= 1:
        return float(inside)
    return config.fraction(key, 1.0)


def pattern(layers: int, every: int, inside: str = SLIDING, last: str = FULL) -> tuple[str, ...]:
    """``inside`` layers with each ``every``-th being ``last``, the default of alternating decoders."""
    return tuple(islice(cycle((*(inside,) * (every - 1), last)), layers))


def attentions(
    config: Settings,
    sizes: Sizes,
    layer_types: Sequence[str],
    *,
    qk_norm: bool = False,
    fused_qkv: bool = False,
    sinks: bool = False,
) -> tuple[Attention, ...]:
    """One ``Attention`` a layer, sliding and chunked layers with the width that the config gives."""
    made = {
        layer_type: Attention(
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            value_dim=sizes.head_dim,
            window=config.optional_size("sliding_window") if layer_type == SLIDING else None,
            chunk=config.size("attention_chunk_size") if layer_type == CHUNKED else None,
            fused_qkv=fused_qkv,
            rotary_dim=sizes.rotary_dim,
            qk_norm=qk_norm,
            sinks=sinks,
            dropout=config.probability("attention_dropout"),
        )
        for layer_type in set(layer_types)
    }
    return tuple(made[layer_type] for layer_type in layer_types)


def attention_tensors(
    sizes: Sizes,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: QkNorm | None = None,
    output: str = "o_proj",
) -> Tensors:
    """The four projections and, where the family norms queries and keys, their weights.

    A norm by ``head`` has ``head_dim`` elements shared by all heads, one by ``projection`` all of them.
    """
    name, count = "model.layers.*.self_attn", sizes.layers
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    norms: Tensors = ()
    if qk_norm:
        norms = (
            *rmsnorm(f"{name}.q_norm", sizes.head_dim if qk_norm == "head" else queries, count=count),
            *rmsnorm(f"{name}.k_norm", sizes.head_dim if qk_norm == "head" else keys, count=count),
        )
    return (
        *linear(f"{name}.q_proj", sizes.hidden, queries, bias=qkv_bias, count=count),
        *linear(f"{name}.k_proj", sizes.hidden, keys, bias=qkv_bias, count=count),
        *linear(f"{name}.v_proj", sizes.hidden, keys, bias=qkv_bias, count=count),
        *linear(f"{name}.{output}", queries, sizes.hidden, bias=output_bias, count=count),
        *norms,
    )


def block_norms(sizes: Sizes, *names: str) -> Tensors:
    """Root-mean-square norms of these names in each layer."""
    return tuple(
        tensor
        for name in names
        for tensor in rmsnorm(f"model.layers.*.{name}", sizes.hidden, count=sizes.layers)
    )


def assemble(
    config: Settings,
    model_type: str,
    sizes: Sizes,
    layers: tuple[Layer, ...],
    blocks: Tensors,
    *,
    final_norm: Tensors | None = None,
    extra: Tensors = (),
    rotary_types: tuple[str, ...] = (),
    head_bias: bool = False,
    embedding_dropout: float = 0.0,
    final_logit_softcap: bool = False,
) -> Architecture:
    """An ``Architecture`` of embedding, ``blocks``, final norm, output head and rotary frequencies."""
    tied = config.flag("tie_word_embeddings")
    norm = rmsnorm("model.norm", sizes.hidden) if final_norm is None else final_norm
    return Architecture(
        model_type=model_type,
        hidden=sizes.hidden,
        vocab=sizes.vocab,
        layers=layers,
        tensors=(
            *embedding("model.embed_tokens", sizes.vocab, sizes.hidden),
            *blocks,
            *norm,
            *output_head("lm_head", sizes.hidden, sizes.vocab, tied=tied, bias=head_bias),
            *extra,
            *rotary("model.rotary_emb", sizes.rotary_dim, layer_types=rotary_types),
        ),
        tied_embeddings=tied,
        max_positions=config.optional_size("max_position_embeddings"),
        embedding_dropout=embedding_dropout,
        final_logit_softcap=final_logit_softcap,
    )
