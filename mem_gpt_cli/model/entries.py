"""The catalogue: well-known decoder models, their configs and where these come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from mem_gpt_cli.errors import UsageError

_FOLDER = Path(__file__).parent / "catalogue"


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue.

    ``hub`` is the repository on the Hugging Face hub, ``config`` what its config.json says of the model's
    shape, ``source`` the page that this is from; ``parameters`` the count that is published, where that is
    exact; ``aliases`` further names that find it, among them tuned models of the same shape.
    """

    name: str
    family: str
    hub: str
    config: Mapping[str, Any] = field(repr=False)
    source: str
    parameters: int | None = None
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that finds this entry, in small letters."""
        return tuple(
            dict.fromkeys(
                name.casefold() for name in (self.name, self.hub, self.hub.rpartition("/")[2], *self.aliases)
            )
        )


@cache
def catalogue() -> tuple[Entry, ...]:
    """All entries, family by family, in the order of their files."""
    return tuple(entry for path in sorted(_FOLDER.glob("*.json")) for entry in _entries(path))


def _entries(path: Path) -> list[Entry]:
    """One file's entries: each is the family's common config with its own differences over it."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return [
        Entry(
            name=name,
            family=document["family"],
            hub=model["hub"],
            config={**document["common"], **model.get("config", {})},
            source=model.get("source", f"https://huggingface.co/{model['hub']}"),
            parameters=model.get("published_parameters"),
            aliases=tuple(model.get("aliases", ())),
        )
        for name, model in document["models"].items()
    ]


@cache
def _index() -> Mapping[str, Entry]:
    # A model's own name wins over another one's alias: reversed, so that the first entry is written last.
    index = {name: entry for entry in reversed(catalogue()) for name in reversed(entry.names)}
    return index | {entry.name.casefold(): entry for entry in catalogue()}


def find_entry(name: str) -> Entry | None:
    """The entry of that name, hub id or alias, in any case; ``None`` where there is none."""
    return _index().get(name.casefold())


def unknown_model(name: str, *, more: tuple[str, ...] = ()) -> UsageError:
    """The error for a name that nothing answers to, with the nearest names, those of ``more`` among them."""
    names_of = {known: entry.name for known, entry in _index().items()} | {known: known for known in more}
    near = get_close_matches(name.casefold(), names_of, n=3, cutoff=0.6)
    names = list(dict.fromkeys(names_of[match] for match in near))
    hint = f"did you mean {' or '.join(names)}? " if names else ""
    return UsageError(
        f"there is no model {name!r}: {hint or 'it is neither a path nor in the catalogue; '}"
        "`memgpt models` lists the catalogue, and a path or a hub id (org/name) works as well"
    )
