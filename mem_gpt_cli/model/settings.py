"""Typed reading of a config.json: each getter checks one key and refuses a wrong value in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mem_gpt_cli.errors import UsageError


class Settings:
    """The values of one model's config over the defaults of its ``model_type``.

    ``aliases`` maps a second spelling of a key to the family's own one (``num_hidden_layers`` to
    ``n_layer``). ``where`` names the config in error messages. Every getter raises ``UsageError`` naming the
    config and the key.
    """

    def __init__(
        self, values: Mapping[str, Any], defaults: Mapping[str, Any], aliases: Mapping[str, str], where: str
    ) -> None:
        own = {aliases[key]: value for key, value in values.items() if key in aliases}
        own.update({key: value for key, value in values.items() if key not in aliases})
        self._values = {**defaults, **own}
        self.where = where

    def refuse(self, key: str, wanted: str) -> UsageError:
        """The error for a key whose value is not what is ``wanted``."""
        if key not in self._values:
            return UsageError(f"{self.where}: {key!r} is missing; give it {wanted}")
        return UsageError(f"{self.where}: {key!r} is {self._values[key]!r}; give it {wanted}")

    def has(self, key: str) -> bool:
        """Whether the key has a value other than null."""
        return self._values.get(key) is not None

    def get(self, key: str) -> Any:
        """The unchecked value, ``None`` where there is none."""
        return self._values.get(key)

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number; ``default`` stands in for a missing or null value."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(key, "a positive whole number")
        return value

    def count(self, key: str) -> int:
        """A whole number of 0 or more; null counts as 0."""
        value = self.get(key)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.refuse(key, "a whole number of 0 or more")
        return value

    def optional_size(self, key: str) -> int | None:
        """A positive whole number, or ``None`` where the value is missing or null."""
        return self.size(key) if self.has(key) else None

    def flag(self, key: str) -> bool:
        """True or false; a missing or null value is false."""
        value = self.get(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def switch(self, value: str | bool) -> bool:
        """A flag that a family either fixes or reads from a key."""
        return value if isinstance(value, bool) else self.flag(value)

    def text(self, key: str) -> str:
        """A non-empty text."""
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.refuse(key, "a text")
        return value

    def probability(self, key: str) -> float:
        """A dropout probability, at least 0 and below 1; null counts as 0."""
        value = self.get(key)
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise self.refuse(key, "a probability, at least 0 and below 1")
        return float(value)

    def fraction(self, key: str, default: float) -> float:
        """A share above 0 and at most 1; ``default`` stands in for a missing or null value."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise self.refuse(key, "a share above 0 and at most 1")
        return float(value)

    def section(self, key: str) -> Mapping[str, Any]:
        """A nested mapping; a missing or null value is an empty one."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.refuse(key, "a mapping of keys to values")
        return value

    def indices(self, key: str) -> tuple[int, ...] | None:
        """A list of whole numbers, or ``None`` where the value is missing or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
            raise self.refuse(key, "a list of whole numbers")
        return tuple(value)

    def layer_types(self, layers: int, allowed: frozenset[str]) -> tuple[str, ...] | None:
        """The ``layer_types`` list, one known name a layer, or ``None`` where the config has none."""
        value = self.get("layer_types")
        if value is None:
            return None
        names = ", ".join(sorted(allowed))
        if not isinstance(value, list | tuple) or not all(item in allowed for item in value):
            raise self.refuse("layer_types", f"a list of {names}")
        if len(value) != layers:
            raise UsageError(
                f"{self.where}: 'layer_types' has {len(value)} entries, the model has {layers} layers: "
                "give one entry a layer"
            )
        return tuple(value)

    def divisible(self, key: str, by: str) -> int:
        """``key`` divided by ``by``, both positive whole numbers, the division exact."""
        whole, part = self.size(key), self.size(by)
        if whole % part:
            raise UsageError(
                f"{self.where}: {key!r} ({whole}) cannot be divided by {by!r} ({part}) without a rest"
            )
        return whole // part
