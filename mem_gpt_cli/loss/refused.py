"""Which configs say that logits are more than one product, so that the fused loss is not theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.recipe.schema import Recipe

_MAKE_MORE_OF_LOGITS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
)
"""Keys of transformers' configs by which a model scales or caps its logits."""


def refuse_loss(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Pass a recipe whose loss its model can have, as far as a config tells; ``check_loss`` asks the model.

    Raises:
        UnsupportedError: for a fused loss of a model that scales or caps its logits.
    """
    if recipe.task != "training" or recipe.loss.kind != "fused":
        return
    for key in _MAKE_MORE_OF_LOGITS:
        if config.get(key) not in (None, 1.0):
            raise UnsupportedError(
                f"{config.get('model_type')} makes its logits by more than one product ({key}), and "
                "linear_cross_entropy does not: write loss.kind: chunked"
            )
