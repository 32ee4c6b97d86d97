"""A model that is there already takes flash attention, where it can."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch

from mem_gpt_cli.attention.backend import FLASH_ATTN, IMPLEMENTATION, runs_flash_attn
from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.model.adjustable import tell

Model = TypeVar("Model")


def use_flash_attention_if_available(model: Model) -> Model:
    """The same model with flash attention, and on stderr what will run; where it cannot, itself, and why.

    flash-attn's kernels run on CUDA where that package is installed, else the flash kernel of torch's SDPA.

    Args:
        model: a text model of memgpt's, which is returned as another one over the same torch model; or a
            model of transformers', whose attention is set in place and which picks SDPA's kernel by itself.
    """
    given: Any = model
    if isinstance(given, torch.nn.Module):
        _set_in_place(given)
        return model
    try:
        flash: Any = given.with_options(attention={"backend": "flash"})
    except MemgptError as error:
        tell(f"no flash attention: {error}")
        return model
    tell(f"flash attention: {_what_runs(flash.attention)}")
    return cast(Model, flash)


def _set_in_place(model: Any) -> None:
    half = model.dtype in (torch.float16, torch.bfloat16)
    fits = half and runs_flash_attn(next(model.parameters()).device)
    wanted = FLASH_ATTN if fits else IMPLEMENTATION["flash"]
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError) as error:
        tell(f"no flash attention: {str(error).splitlines()[0]}")
    else:
        tell(f"flash attention: {_what_runs(wanted)}")


def _what_runs(attention: str) -> str:
    return "flash-attn" if attention == FLASH_ATTN else "the flash kernel of torch's SDPA"
