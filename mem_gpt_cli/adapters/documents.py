"""What the files of a saved adapter must hold, as far as memgpt computes with it; other keys may be there."""

# No `from __future__ import annotations`: pydantic would compile each annotation again.

import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.recipe.problems import shown

Document = TypeVar("Document", bound="Part")
Number = TypeVar("Number", int, float)
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of one value, by safetensors' name of its format."""


def _compiles(end: str) -> str:
    try:
        re.compile(_ending_in(end))
    except re.error as error:
        raise ValueError(f"is no regular expression ({error.msg})") from error
    return end


def _ending_in(end: str) -> str:
    """peft's ``get_pattern_key``: a whole part of a module's path, or several, at its end."""
    return rf"(.*\.)?({end})$"


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression of the ends of modules' paths."""


def _by_pattern(patterns: Mapping[str, Number] | None, module: str, usual: Number) -> Number:
    """What the first pattern says that fits the module's path."""
    fitting = (own for end, own in (patterns or {}).items() if re.match(_ending_in(end), module))
    return next(fitting, usual)


class Part(BaseModel):
    """A part of a document: the text "4" is no number."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class LoraConfig(Part):
    """peft's config, where it says what the product of two factors is scaled by."""

    base_model_name_or_path: str | None = None
    r: PositiveInt = 8
    lora_alpha: FiniteFloat = 8
    use_rslora: bool = False
    rank_pattern: dict[Pattern, PositiveInt] | None = None
    alpha_pattern: dict[Pattern, FiniteFloat] | None = None

    def rank_of(self, module: str) -> int:
        """The rank of the factors at a module's path."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale_of(self, module: str) -> float:
        """What their product is multiplied by: peft's ``LoraLayer.update_layer``."""
        rank = self.rank_of(module)
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


class NotedWeight(Part):
    """Values of one of the base's tensors; ``dtype`` is torch's name without ``torch.``."""

    name: str
    dtype: str
    values: list[float]


class Base(Part):
    """The model that an adapter was trained on; ``weights`` is ``None`` where they were random."""

    name: str
    architecture: Annotated[dict[str, Any], Field(min_length=1)]
    weights: list[NotedWeight] | None = None


class Storage(Part):
    """The recipe's section ``quantization``, as far as it was given."""

    scheme: str = "none"


class Record(Part):
    """memgpt's note beside an adapter; ``quantization`` is ``None`` where the base's weights were in full."""

    schema_version: Literal[1]
    saved: Annotated[datetime, Field(strict=False), PlainSerializer(datetime.isoformat)]
    base: Base
    quantization: Storage | None = None

    @property
    def scheme(self) -> str:
        """How the weights were stored that the adapter was trained over; ``none``: in full."""
        return self.quantization.scheme if self.quantization else "none"


class Entry(Part):
    """One tensor in the header of a safetensors file."""

    dtype: Literal["F64", "F32", "F16", "BF16"]
    shape: list[PositiveInt]
    data_offsets: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        return self.data_offsets[1] - self.data_offsets[0]

    @model_validator(mode="after")
    def _bytes_are_those_of_the_shape(self) -> "Entry":
        if self.nbytes != math.prod(self.shape) * _WIDTHS[self.dtype]:
            raise ValueError(f"has {self.nbytes} bytes, which are not those of {self.dtype} {self.shape}")
        return self


def checked(kind: type[Document], found: Mapping[str, Any], path: Path, *place: str) -> Document:
    """What was found in a file, as the document that it must be.

    Args:
        kind: the document.
        found: the JSON object.
        path: of the file, for the error.
        place: where in the file the object stands, for the error.

    Raises:
        UsageError: for what is missing or is of another kind, the first of it.
    """
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join((*place, *(str(step) for step in first["loc"] if step != "[key]")))
        what = f"{where}: {_wrong(first)}"
        raise UsageError(f"{path}: {what}: fetch or save the adapter again") from error


def _wrong(detail: Any) -> str:
    if detail["type"] == "missing":
        return "is missing"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    expected = detail["msg"].removeprefix("Input ").replace("should ", "must ", 1)
    if detail["type"] in ("dict_type", "model_type"):
        expected = "must be an object"
    return f"{expected[:1].lower()}{expected[1:]}, not {shown(detail['input'])}"
