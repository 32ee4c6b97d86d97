"""The optimizer of a recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch

from mem_gpt_cli.model.facts import trainable
from mem_gpt_cli.optimizers.galore import GaLore
from mem_gpt_cli.optimizers.galore_steps import projected
from mem_gpt_cli.optimizers.settings import DEFAULT_UPDATE_EVERY, Parameter, Settings
from mem_gpt_cli.recipe.schema import Recipe

_IN_LAYER = re.compile(r"\.\d+\.")
_PAPERS_EPSILON = 1e-15
"""Its square is the least that squared gradients count for in Adafactor's paper (arXiv:1804.04235, 1e-30)."""


def build_optimizer(recipe: Recipe, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over what a model trains.

    What ``auto`` comes to is said outright, because a dry run for CUDA has its tensors elsewhere.
    """
    settings = Settings.of(recipe)
    return _BUILDERS[settings.name](trainable(model), recipe, settings)


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Every tensor that the optimizer keeps between steps."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                yield value
    if isinstance(optimizer, GaLore):
        yield from optimizer.maps


def listed(model: torch.nn.Module) -> list[Parameter]:
    """The shapes of what a model trains, as formulas take them."""
    return [
        Parameter(tuple(p.shape), p.element_size(), _IN_LAYER.search(name) is not None)
        for name, p in trainable(model).items()
    ]


Named = dict[str, torch.nn.Parameter]


def _common(recipe: Recipe) -> dict[str, Any]:
    return {"lr": recipe.optimizer.lr, "weight_decay": recipe.optimizer.weight_decay}


def _choice(settings: Settings) -> dict[str, Any]:
    """Which of torch's three implementations."""
    return {
        "foreach": settings.implementation == "foreach",
        "fused": True if settings.implementation == "fused" else None,
    }


def _adamw(named: Named, recipe: Recipe, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(named.values(), **_common(recipe), **_choice(settings))


def _sgd(named: Named, recipe: Recipe, settings: Settings) -> torch.optim.Optimizer:
    momentum = recipe.optimizer.momentum or 0.0
    return torch.optim.SGD(named.values(), momentum=momentum, **_common(recipe), **_choice(settings))


def _adafactor(named: Named, recipe: Recipe, settings: Settings) -> torch.optim.Optimizer:
    """torch's own: it is kept with the other optimizers of torch, and does no schedule of its own.

    Its default for the smallest squared gradient is the width's machine epsilon, which in bf16 is larger than
    most gradients: the paper's is given instead, or what fp16 can hold.
    """
    del settings
    smallest = max((torch.finfo(p.dtype).tiny for p in named.values()), default=0.0)
    epsilon = max(_PAPERS_EPSILON, math.sqrt(smallest))
    return torch.optim.Adafactor(named.values(), eps=(epsilon, 1e-3), **_common(recipe))


def _bitsandbytes(named: Named, recipe: Recipe, settings: Settings) -> torch.optim.Optimizer:
    from bitsandbytes import optim

    classes = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
        "lion_8bit": optim.Lion8bit,
    }
    return classes[settings.name](named.values(), **_common(recipe))  # type: ignore[no-any-return]


def _galore(named: Named, recipe: Recipe, settings: Settings) -> torch.optim.Optimizer:
    return GaLore(
        [{"params": [p], "rank": _rank(name, p, settings)} for name, p in named.items()],
        update_every=recipe.optimizer.update_every or DEFAULT_UPDATE_EVERY,
        bits=settings.bits,
        **_common(recipe),
    )


def _rank(name: str, parameter: torch.nn.Parameter, settings: Settings) -> int | None:
    """The rank of a matrix in a layer that has more; ``None`` for all other parameters."""
    in_layer = _IN_LAYER.search(name) is not None
    return settings.rank if projected(parameter.shape, settings.rank, in_layer=in_layer) else None


_BUILDERS = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "adamw_8bit": _bitsandbytes,
    "paged_adamw_8bit": _bitsandbytes,
    "lion_8bit": _bitsandbytes,
    "galore": _galore,
}
