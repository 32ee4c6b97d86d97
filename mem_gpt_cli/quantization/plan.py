"""Which module of a model is stored how: a recipe's quantization, resolved to one method a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from mem_gpt_cli.recipe.methods import Method, method
from mem_gpt_cli.recipe.schema import Recipe

__all__ = ["Method", "Plan", "Role", "plan_of"]

Role = Literal["linear", "embedding", "head"]
_WORDS: dict[str, Role] = {"embeddings": "embedding", "head": "head"}


@dataclass(frozen=True)
class Plan:
    """``layers`` is how the layers' matrices are stored; ``overrides`` are patterns to methods, in order."""

    layers: Method | None
    overrides: tuple[tuple[str, Method | None], ...] = ()

    @property
    def quantizes(self) -> bool:
        """Whether anything at all may be quantized."""
        return any(self.methods())

    def methods(self) -> Iterator[Method | None]:
        """Every method that occurs, the layers' first."""
        yield self.layers
        yield from (each for _, each in self.overrides)

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
        found = self.layers if all(role == "linear" for _, role in modules) else None
        for pattern, override in self.overrides:
            if any(_matches(pattern, path, role) for path, role in modules):
                found = override
        return found

    def unmatched(self, modules: Iterable[tuple[str, Role]]) -> tuple[str, ...]:
        """The patterns that match none of a model's modules: a misspelt one would change nothing."""
        every = tuple(modules)
        return tuple(
            pattern
            for pattern, _ in self.overrides
            if not any(_matches(pattern, path, role) for path, role in every)
        )


def plan_of(recipe: Recipe) -> Plan:
    """The recipe's quantization with every default filled in."""
    section = recipe.quantization
    overrides = tuple((name, method(section, override)) for name, override in section.overrides.items())
    return Plan(method(section), overrides)


def _matches(pattern: str, path: str, role: Role) -> bool:
    if pattern in _WORDS:
        return role == _WORDS[pattern]
    return fnmatchcase(path, pattern)
