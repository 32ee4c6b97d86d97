"""Predict, trace and measure where the memory of GPT-style transformers goes.

    import mem_gpt_cli as memgpt

    report = memgpt.estimate("recipe.yaml")  # or trace(...), or profile(...)
    model = memgpt.load({"model": {"name": "memgpt-tiny"}})

A recipe is a ``Recipe``, the path or the name of a recipe file, or a mapping of its keys. Nothing
heavy is imported before one of these is called: ``estimate`` never needs torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mem_gpt_cli._version import __version__

if TYPE_CHECKING:
    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.report.model import MemoryReport
    from mem_gpt_cli.workload.text_model import TextModel

__all__ = ["MemoryReport", "Recipe", "__version__", "estimate", "load", "profile", "trace"]

_LAZY = {"MemoryReport": "mem_gpt_cli.report.model", "Recipe": "mem_gpt_cli.recipe.schema"}


def estimate(recipe: Recipe | Mapping[str, Any] | str | Path) -> MemoryReport:
    """Predict in closed form, without torch.

    Raises:
        MemgptError: for a recipe that cannot be used or a model that has no formula.
    """
    from mem_gpt_cli.estimate import estimate as answer

    return answer(_recipe(recipe))


def trace(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    full_depth: bool = False,
    events: Path | None = None,
    timeline: Path | None = None,
) -> MemoryReport:
    """Predict by running the real code on fake tensors; see ``mem_gpt_cli.trace.trace``.

    Raises:
        MemgptError: for a recipe that cannot be used or a model that cannot be traced.
    """
    from mem_gpt_cli.trace import trace as answer

    return answer(_recipe(recipe), full_depth=full_depth, events=events, timeline=timeline)


def profile(recipe: Recipe | Mapping[str, Any] | str | Path, **options: Any) -> MemoryReport:
    """Measure by running for real on the recipe's device; ``options`` are ``mem_gpt_cli.profile.profile``'s.

    Raises:
        MemgptError: for a recipe that cannot be used or a device that is not there.
    """
    from mem_gpt_cli.profile import profile as answer

    return answer(_recipe(recipe), **options)


def load(recipe: Recipe | Mapping[str, Any] | str | Path) -> TextModel:
    """The recipe's model with its weights, options and tokenizer, ready to ``generate``: text in, text out.

    Raises:
        MemgptError: for a recipe that cannot be used, or weights that are not to be had.
    """
    from mem_gpt_cli.profile.device import find_device
    from mem_gpt_cli.workload.text_model import load as load_model

    loaded = _recipe(recipe)
    return load_model(loaded, find_device(loaded.device).torch_device)


def _recipe(given: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    from mem_gpt_cli.recipe import Recipe, load_recipe, recipe_of

    if isinstance(given, Recipe):
        return given
    if isinstance(given, Mapping):
        return recipe_of(given)
    return load_recipe(given)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


class _Package(ModuleType):
    """Each lens is a room and a function here, of one name: the import of the room leaves the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
