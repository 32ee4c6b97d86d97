"""One sentence on why a model cannot be traced: who in the model asked for what."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

_OWN = Path(__file__).parents[1]
_TORCH = Path(torch.__file__).parent


def why_not(error: BaseException) -> str:
    """Any failure of a fake run as one clear sentence that names the model's function and line."""
    return f"{_asker(error)} {_reason(error)}"


def _reason(error: BaseException) -> str:
    if isinstance(error, DataDependentOutputException):
        return "asks for the value of a tensor, and a trace has sizes but no data"
    if isinstance(error, DynamicOutputShapeException):
        return f"makes a tensor whose size depends on data ({error.func}), and a trace has no data"
    if isinstance(error, UnsupportedOperatorException | NotImplementedError):
        operator = re.search(r"\b\w+(::|\.)\w+(\.\w+)?", str(error))
        name = operator[0] if operator else "an operator"
        return f"calls {name}, for which torch has no way to tell the size of the result without running it"
    if isinstance(error, ImportError):
        return f"needs a package that is not installed: {_first_line(error)}"
    if "data pointer" in str(error) or "data_ptr" in str(error):
        return "hands a tensor's memory to code outside of torch, and in a trace there is no memory"
    return f"fails without data with {type(error).__name__}: {_first_line(error)}"


def _asker(error: BaseException) -> str:
    """The innermost function outside of torch on the way to the failure, with its file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    names = _qualified_names(error)
    for frame, name in zip(reversed(frames), reversed(names), strict=True):
        path = Path(frame.filename)
        if path.is_relative_to(_OWN) or path.is_relative_to(_TORCH) or frame.name == "decorate_context":
            continue
        if path.parent.name in ("utils", "contextlib") or not path.is_absolute():
            continue
        line = f", `{frame.line}`," if frame.line else ""
        return f"{name} ({path.name}:{frame.lineno}){line}"
    return "a step outside of the model's own code, such as backward or the optimizer,"


def _qualified_names(error: BaseException) -> list[str]:
    names: list[str] = []
    link = error.__traceback__
    while link is not None:
        names.append(link.tb_frame.f_code.co_qualname)
        link = link.tb_next
    return names


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
