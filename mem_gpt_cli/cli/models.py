"""``memgpt models``: the catalogue, and the model that the package holds."""

from __future__ import annotations

import json as json_text
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mem_gpt_cli.cli import console
from mem_gpt_cli.errors import UsageError

if TYPE_CHECKING:
    from mem_gpt_cli.model import Architecture

_COLUMNS = ("model", "params", "layers", "hidden", "attention", "experts", "context")


@dataclass(frozen=True)
class _Listed:
    """A model as the listing shows it; ``names`` is everything that finds it."""

    name: str
    family: str
    hub: str | None
    source: str
    names: tuple[str, ...]
    architecture: Architecture

    def matches(self, words: tuple[str, ...]) -> bool:
        """Whether each word is a part of its name, an alias, its family or its model type."""
        texts = (*self.names, self.family.casefold(), self.architecture.model_type)
        return all(any(word in text for text in texts) for word in words)


def models(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Show only models with these words in name, family or type.", metavar="WORDS..."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array and nothing else.")] = False,
) -> None:
    """List the models that `--model` knows by name; a path or a hub id works as well."""
    wanted = tuple(word.casefold() for word in words or ())
    found = [listed for listed in _all() if listed.matches(wanted)]
    if not found:
        raise UsageError(
            f"no model of the catalogue has {' '.join(words or ())!r} in its name: try fewer words"
        )
    if json:
        print(json_text.dumps([_as_dict(listed) for listed in found], indent=2))
        return
    _print_table(found)
    console.people().print(f"{len(found)} models", highlight=False)


def _all() -> list[_Listed]:
    """The embedded model, then the catalogue in its order."""
    from mem_gpt_cli.model import catalogue, read_architecture
    from mem_gpt_cli.model.resolve import TINY, find

    tiny = find(TINY)
    embedded = _Listed(TINY, "embedded", None, str(tiny.folder), (TINY,), tiny.architecture)
    entries = [
        _Listed(
            entry.name,
            entry.family,
            entry.hub,
            entry.source,
            entry.names,
            read_architecture(entry.config, entry.name),
        )
        for entry in catalogue()
    ]
    return [embedded, *entries]


def _print_table(found: list[_Listed]) -> None:
    from rich.table import Table

    table = Table(*_COLUMNS, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns[1:4] + table.columns[5:]:
        column.justify = "right"
    for listed in found:
        architecture = listed.architecture
        table.add_row(
            listed.name,
            _count(architecture.parameters),
            str(len(architecture.layers)),
            str(architecture.hidden),
            _attention(architecture),
            _experts(architecture),
            f"{architecture.max_positions:,}" if architecture.max_positions else "",
        )
    console.data().print(table)


def _count(parameters: int) -> str:
    """Three significant digits of millions or billions."""
    if parameters < 999_500_000:
        return f"{parameters / 1e6:.3g} M"
    billions = parameters / 1e9
    return f"{billions:.{2 if billions < 9.995 else 1 if billions < 99.95 else 0}f} B"


def _attention(architecture: Architecture) -> str:
    """The kind of attention and its heads, queries over keys and values."""
    attention = architecture.layers[0].attention
    if attention.kv_lora_rank:
        return f"MLA {attention.heads}"
    if attention.kv_heads == attention.heads:
        return f"MHA {attention.heads}"
    return f"{'MQA' if attention.kv_heads == 1 else 'GQA'} {attention.heads}/{attention.kv_heads}"


def _experts(architecture: Architecture) -> str:
    """Experts that a token uses over those that there are."""
    mlp = architecture.layers[-1].mlp
    return f"{mlp.experts_per_token}/{mlp.experts}" if mlp.experts else ""


def _as_dict(listed: _Listed) -> dict[str, Any]:
    architecture = listed.architecture
    attention, mlp = architecture.layers[0].attention, architecture.layers[-1].mlp
    return {
        "name": listed.name,
        "family": listed.family,
        "model_type": architecture.model_type,
        "parameters": architecture.parameters,
        "layers": len(architecture.layers),
        "hidden": architecture.hidden,
        "vocab": architecture.vocab,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "experts": mlp.experts,
        "experts_per_token": mlp.experts_per_token,
        "max_positions": architecture.max_positions,
        "hub": listed.hub,
        "source": listed.source,
        "names": list(listed.names),
    }
