"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) as transformers 5.23 runs it.

The cache holds the latent and the rotated key that all heads share; keys and values by head are expanded from
the whole cache in every pass (``models/deepseek_v3/modeling_deepseek_v3.py``).
"""

from __future__ import annotations

from mem_gpt_cli.estimate import attention_ops, ops
from mem_gpt_cli.estimate.cache import update_cache
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.norms import rms_norm
from mem_gpt_cli.estimate.rotary import rotate
from mem_gpt_cli.estimate.tape import Tensor
from mem_gpt_cli.model.architecture import Layer


def latent_projections(
    run: Pass, layer: Layer, index: int, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Queries, and keys and values expanded by head, of every token that the cache holds.

    Last come the tensors on which the attention's forward keeps a name to its end.
    """
    tape, part = run.tape, layer.attention
    rope, rank = part.rope_head_dim or 0, part.kv_lora_rank or 0
    name = f"layers.{index}"
    q_pass, q_rot = _queries(run, layer, index, x, rope)
    mixed = run.project(x, f"{name}.kv_a", run.architecture.hidden, rank + rope)
    latent, k_rot = ops.split(tape, mixed, (run.rows * rank, run.rows * rope))
    latent = rms_norm(run, latent, rank, f"{name}.kv_a_norm")
    q_rot, k_rot = rotate(run, q_rot), rotate(run, k_rot)
    if run.cache is not None:
        latent, k_rot = update_cache(run, part, index, latent, k_rot)
    q = ops.concatenate(tape, (q_pass, q_rot))
    k, v = _expand(run, layer, index, latent, k_rot)
    return q, k, v, (q_pass, q_rot, latent, k_rot, mixed)


def _queries(run: Pass, layer: Layer, index: int, x: Tensor, rope: int) -> tuple[Tensor, Tensor]:
    tape, part, hidden = run.tape, layer.attention, run.architecture.hidden
    name, width = f"layers.{index}", part.heads * part.head_dim
    if part.q_lora_rank:
        x = run.project(x, f"{name}.q_a", hidden, part.q_lora_rank)
        x = rms_norm(run, x, part.q_lora_rank, f"{name}.q_a_norm")
        hidden = part.q_lora_rank
    q = attention_ops.to_heads(tape, run.project(x, f"{name}.q_b", hidden, width))
    rotated = run.rows * part.heads * rope
    q_pass, q_rot = ops.split(tape, q, (q.numel - rotated, rotated))
    return q_pass, q_rot


def _expand(run: Pass, layer: Layer, index: int, latent: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
    """``expand_kv``: one projection of the latent; the rotated part is copied into every head's key."""
    tape, part = run.tape, layer.attention
    rank, nope = part.kv_lora_rank or 1, part.head_dim - (part.rope_head_dim or 0)
    width = part.heads * (nope + part.value_dim)
    tokens = latent.numel // rank
    both = run.project(latent, f"layers.{index}.kv_b", rank, width)
    k_nope, v = ops.split(
        tape,
        attention_ops.to_heads(tape, both),
        (tokens * part.heads * nope, tokens * part.heads * part.value_dim),
    )
    keys = tape.new(tokens * part.heads * part.head_dim, both.item, "new_empty")
    return tape.record("copy_slices", keys, (k_nope, k_rot), (), ops.fresh), v
