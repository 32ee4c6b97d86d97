"""A text model that generates from pages, where its model can."""

from __future__ import annotations

from typing import Any, TypeVar

from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.kv_cache.paged import why_not
from mem_gpt_cli.model.adjustable import Adjustable, tell

Model = TypeVar("Model", bound=Adjustable)


def use_paged_kv_cache_if_available(model: Model) -> Model:
    """The same model with its keys and values on pages; where that cannot be, itself, and why on stderr.

    A model that was set to flash attention alone changes to SDPA, because pages are read under a mask, and
    says so: SDPA still takes the flash kernel wherever there is none.
    """
    reason = why_not(model.model)
    changes: dict[str, Any] = {"kv_cache": {"kind": "paged"}}
    if model.recipe.attention.backend == "flash":
        changes["attention"] = {"backend": "sdpa"}
    if reason is None:
        try:
            paged = model.with_options(**changes)
        except MemgptError as error:
            reason = str(error)
        else:
            if "attention" in changes:
                tell("pages are read under a mask, which flash alone does not take: SDPA picks the kernel")
            return paged
    tell(f"no paged KV cache: {reason}")
    return model
