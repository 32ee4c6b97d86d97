"""Which module of a model is stored how: a recipe's quantization, resolved to one method a module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from mem_gpt_cli.recipe.methods import Method, method
from mem_gpt_cli.recipe.schema import Recipe

__all__ = ["Method", "Plan", "Role", "plan_of"]

Role = Literal["linear", "embedding", "head"]
_WORDS: dict[str, Role] = {"embeddings": "embedding", "head": "head"}


class Override(NamedTuple):
    """How what a pattern matches is stored: as a linear layer's matrix, and as an embedding."""

    pattern: str
    linear: Method | None
    embedding: Method | None


@dataclass(frozen=True)
class Plan:
    """``layers`` is how the layers' matrices are stored; of ``overrides`` the last that matches counts."""

    layers: Method | None
    overrides: tuple[Override, ...] = ()
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def quantizes(self) -> bool:
        """Whether anything at all may be quantized."""
        return self.layers is not None or any(override.linear for override in self.overrides)

    def method(self, path: str, role: Role) -> Method | None:
        """How the matrix of one module is stored; ``None`` keeps it in full.

        Args:
            path: the module's path in the model, such as ``model.layers.0.mlp.up_proj``.
            role: ``embedding`` is the input's token embedding alone (positions stay in full), ``head`` the
                output's matrix, ``linear`` every other matrix of a linear layer or ``Conv1D``.
        """
        return self.shared((path, role))

    def shared(self, *modules: tuple[str, Role]) -> Method | None:
        """How a matrix is stored that several modules share, as a tied head and embedding do.

        It is one tensor, so what matches any of its names counts for all of them.
        """
        roles = {role for _, role in modules}
        found = self.layers if roles == {"linear"} else None
        for override in self.overrides:
            if any(_matches(override.pattern, path, role) for path, role in modules):
                found = override.embedding if "embedding" in roles else override.linear
        return found

    def unmatched(self, modules: Iterable[tuple[str, Role]]) -> tuple[str, ...]:
        """The patterns that match none of a model's modules: a misspelt one would change nothing."""
        every = tuple(modules)
        return tuple(
            override.pattern
            for override in self.overrides
            if not any(_matches(override.pattern, path, role) for path, role in every)
        )


def plan_of(recipe: Recipe) -> Plan:
    """The recipe's quantization with every default filled in."""
    section = recipe.quantization
    overrides = tuple(
        Override(pattern, method(section, override), method(section, override, embedding=True))
        for pattern, override in section.overrides.items()
    )
    return Plan(method(section), overrides, recipe.device.type)


def _matches(pattern: str, path: str, role: Role) -> bool:
    if pattern in _WORDS:
        return role == _WORDS[pattern]
    return fnmatchcase(path, pattern)
