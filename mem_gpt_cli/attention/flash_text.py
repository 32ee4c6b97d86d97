"""A text model that attends by flash kernels, where they can run."""

from __future__ import annotations

from typing import TypeVar

from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.model.adjustable import Adjustable, tell

Model = TypeVar("Model", bound=Adjustable)


def use_flash_attention_if_available(model: Model) -> Model:
    """The same model with flash attention alone; where that cannot be, itself, and why on stderr."""
    try:
        return model.with_options(attention={"backend": "flash"})
    except MemgptError as error:
        tell(f"no flash attention: {error}")
        return model
