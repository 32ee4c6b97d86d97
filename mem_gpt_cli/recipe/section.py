"""What every section of a recipe is made of."""

# No `from __future__ import annotations`: pydantic would compile each annotation again, at every start.

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mem_gpt_cli.recipe.quantities import parse_bytes

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Positive = Annotated[int, Field(gt=0, le=10**9)]
Name = Annotated[str, Field(min_length=1)]
DType = Literal["fp32", "fp16", "bf16"]


class Section(BaseModel):
    """A part of a recipe: frozen, closed to unknown keys, and strict: the text "4" is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
