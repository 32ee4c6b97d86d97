"""One decoder layer, written down operation by operation as transformers' modelling code runs it.

Python's own variables decide how long a buffer lives, here as there: a name that the modelling code keeps is
kept here. Sources: ``transformers/models/{gpt2,llama,opt,gemma3,deepseek_v3}/modeling_*.py``.
"""

from __future__ import annotations

from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.attention import attention
from mem_gpt_cli.estimate.books import MLP
from mem_gpt_cli.estimate.experts import mixture
from mem_gpt_cli.estimate.feed_forward import dense_mlp
from mem_gpt_cli.estimate.forward_pass import Pass
from mem_gpt_cli.estimate.norms import norm
from mem_gpt_cli.estimate.tape import Tensor
from mem_gpt_cli.model.architecture import Layer


def block(run: Pass, layer: Layer, index: int, x: Tensor) -> Tensor:
    """One layer: ``x`` is the residual stream, ``[batch, tokens, hidden]``."""
    if layer.parallel:
        return _parallel_block(run, layer, index, x)
    name, position = f"layers.{index}", run.dialect.norm_position
    residual = x
    if position != "post":
        x = norm(run, layer, x, f"{name}.attention_norm")
    entered = x if run.dialect.holds_attention_output else None
    x, weights = attention(run, layer, index, x)
    if not run.dialect.drops_in_attention:
        x = ops.dropout(run.tape, x, run.dropout(layer.residual_dropout))
    held = x if run.dialect.holds_attention_output else None
    if position != "pre":
        x = norm(run, layer, x, f"{name}.attention_post_norm")
    x = residual = ops.add(run.tape, residual, x)
    entered = None
    if position != "post":
        x = norm(run, layer, x, f"{name}.mlp_norm")
    entered = x if run.dialect.holds_attention_output else None
    x = feed_forward(run, layer, index, x)
    if position != "pre":
        x = norm(run, layer, x, f"{name}.mlp_post_norm")
    x = ops.add(run.tape, residual, x)
    del weights, entered, held
    return x


def _parallel_block(run: Pass, layer: Layer, index: int, x: Tensor) -> Tensor:
    """Attention and MLP from one input (GPT-J, GPT-NeoX, Falcon, Phi)."""
    name, residual = f"layers.{index}", x
    x = norm(run, layer, x, f"{name}.attention_norm")
    attended, weights = attention(run, layer, index, x)
    if layer.norms > 1:
        x = norm(run, layer, residual, f"{name}.mlp_norm")
    x = feed_forward(run, layer, index, x)
    x = ops.add(run.tape, x, attended)
    x = ops.add(run.tape, x, residual)
    del weights
    return x


def feed_forward(run: Pass, layer: Layer, index: int, x: Tensor) -> Tensor:
    """The feed-forward part of a layer, dense or a mixture of experts."""
    name = f"layers.{index}.mlp"
    with run.inside(MLP, name):
        if layer.mlp.experts:
            return mixture(run, layer.mlp, name, x)
        x = dense_mlp(run, layer.mlp, name, x, layer.mlp.intermediate)
        return ops.dropout(run.tape, x, run.dropout(layer.residual_dropout))
