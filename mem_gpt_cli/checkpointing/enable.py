"""Which layers keep their input alone and run again in backward, and which keep more, or keep it elsewhere.

Every policy is another way to call a layer: transformers' ``GradientCheckpointingLayer`` hands its forward
pass to a function of ours while it is trained.
"""

from __future__ import annotations

from typing import Any

from mem_gpt_cli.checkpointing.offload import ATTRIBUTE, Offload
from mem_gpt_cli.checkpointing.plan import Plan
from mem_gpt_cli.checkpointing.selective import contexts_of
from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.recipe.schema import Recipe


def enable_checkpointing(model: Any, recipe: Recipe) -> None:
    """Checkpoint the layers of a transformers model as the recipe says.

    Raises:
        UnsupportedError: for a model whose code has no layers that can be checkpointed.
    """
    plan = Plan.of(recipe.checkpointing)
    if plan.policy == "none":
        return
    layers = checkpointed_layers(model)
    if not layers or not model.supports_gradient_checkpointing:
        raise UnsupportedError(
            f"checkpointing.policy: transformers' {type(model).__name__} has no layers that can be "
            "checkpointed: choose none"
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if plan.keep:
        options["context_fn"] = contexts_of(plan.keep)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable(options)  # transformers before 5.20 has the older name alone
    model.disable_input_require_grads()  # what reentrant checkpoints of a frozen model would need
    offload = Offload() if plan.offloads else None
    setattr(model, ATTRIBUTE, offload)
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = plan.offloads or plan.recomputes(index)
        if offload is not None:
            layer._gradient_checkpointing_func = offload.around(layer)


def checkpointed_layers(model: Any) -> list[Any]:
    """The layers that transformers can checkpoint, the first one first."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
