"""The cache that a recipe asks for, as transformers' own classes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from mem_gpt_cli.errors import EnvironmentUnavailableError, UnsupportedError
from mem_gpt_cli.kv_cache.cost import BITS, static_tokens
from mem_gpt_cli.recipe.schema import Recipe

GROUP_AXIS = {"hqq": 1, "quanto": 0}
"""Packages that store keys and values in 4 and 2 bits, and the axis along which each groups them."""


def new_cache(model: torch.nn.Module, recipe: Recipe) -> Any:
    """An empty cache for one generation; ``None`` where the model makes its own (``dynamic``) or keeps none.

    A window (``sliding``) is the model's own, or was given to it when it was built; then the cache that
    transformers makes of the model's config has it.

    Raises:
        UnsupportedError: for a model whose layers no such cache of transformers can hold, or a transformers
            that has none.
        EnvironmentUnavailableError: where the package that the format needs is not installed.
    """
    kind = recipe.kv_cache.kind
    make = {"static": _static, "quantized": _quantized, "offloaded": _offloaded}.get(kind)
    if make is None:
        return None
    config: Any = model.config
    try:
        return make(config, recipe)
    except (KeyError, ValueError) as error:
        reason = str(error).strip("'").splitlines()[0]
        raise UnsupportedError(
            f"kv_cache.kind: {recipe.model.name} cannot have a {kind} cache ({reason}): choose dynamic"
        ) from error


def _static(config: Any, recipe: Recipe) -> Any:
    from transformers import StaticCache

    return StaticCache(config=config, max_cache_len=static_tokens(recipe))


def _offloaded(config: Any, recipe: Recipe) -> Any:  # noqa: ARG001
    from transformers import DynamicCache

    return DynamicCache(config=config, offloading=True)


def _quantized(config: Any, recipe: Recipe) -> Any:
    from transformers import QuantizedCache

    stored = recipe.kv_cache.format or "fp8"
    if stored == "fp8":
        _want_fp8()
        return QuantizedCache("fp8", config)
    backend = integer_backend(stored)
    axis = GROUP_AXIS[backend]
    return QuantizedCache(backend, config, nbits=BITS[stored], axis_key=axis, axis_value=axis)


def _want_fp8() -> None:
    import transformers
    from transformers import cache_utils

    if not hasattr(cache_utils, "Fp8QuantizedLayer"):
        raise UnsupportedError(
            f"kv_cache.format: transformers {transformers.__version__} has no fp8 cache, newer ones (5.23) "
            "have it: update transformers, or choose another cache"
        )


def integer_backend(stored: str) -> str:
    """The installed package that stores keys and values in 4 or 2 bits.

    Raises:
        EnvironmentUnavailableError: where there is none.
    """
    if find_spec("hqq"):
        return "hqq"
    if find_spec("optimum") and find_spec("optimum.quanto"):
        return "quanto"
    raise EnvironmentUnavailableError(
        f"kv_cache.format: {stored} needs the package hqq or optimum-quanto, and neither is installed: "
        "install one, or choose fp8"
    )
