"""peft, the library that adapters come from."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from mem_gpt_cli.errors import MissingExtraError
from mem_gpt_cli.model.imports import quiet


@cache
def peft() -> Any:
    """The library, imported without what the packages that it imports log of kernels for other machines.

    Raises:
        MissingExtraError: where it is not installed.
    """
    try:
        with quiet("bitsandbytes", "torchao", "torch.utils._pytree"):
            found = import_module("peft")
            import_module("peft.tuners.lora")
            import_module("peft.utils.transformers_weight_conversion")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise MissingExtraError("peft", "training", "a recipe with adapters") from error
    return found
