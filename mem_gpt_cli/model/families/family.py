"""What a family of models tells about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.model.settings import Settings


@dataclass(frozen=True)
class Family:
    """How configs of one ``model_type`` are read.

    ``defaults`` holds every key that the reader knows with the value that transformers' config class gives
    it where a config.json leaves it out; ``aliases`` other spellings of those keys. ``read`` raises
    ``UsageError`` for a value that no model can have.
    """

    model_type: str
    defaults: Mapping[str, Any]
    read: Callable[[Settings], Architecture]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def settings(self, config: Mapping[str, Any], where: str) -> Settings:
        """The config's values over this family's defaults."""
        return Settings(config, self.defaults, self.aliases, where)
