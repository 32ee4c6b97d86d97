"""What cannot be combined, or would be ignored: a file for each section, each refusal with its reason."""

from __future__ import annotations

from typing import Literal

from mem_gpt_cli.recipe.document import KeyPath

Lens = Literal["estimate", "trace", "profile"]
Refusal = tuple[KeyPath, str]
"""The key that is refused, and the reason with its mend."""
