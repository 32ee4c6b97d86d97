"""peft, the library that adapters come from."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from typing import Any

from mem_gpt_cli.errors import MissingExtraError


@cache
def peft() -> Any:
    """The library, imported without what the packages that it imports log of kernels for other machines.

    Raises:
        MissingExtraError: where it is not installed.
    """
    loggers = [logging.getLogger(name) for name in ("bitsandbytes", "torchao", "torch.utils._pytree")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        found = import_module("peft")
        import_module("peft.tuners.lora")
        import_module("peft.utils.transformers_weight_conversion")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise MissingExtraError("peft", "training", "a recipe with adapters") from error
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
    return found
