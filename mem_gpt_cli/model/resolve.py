"""From the name in a recipe to a model: a path, the embedded one, the catalogue or the hub, in this order."""

from __future__ import annotations

import re
from dataclasses import replace as with_changes
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mem_gpt_cli.errors import MemgptError, UsageError
from mem_gpt_cli.model.config_file import decoder_part, read_config
from mem_gpt_cli.model.entries import Entry, find_entry, unknown_model
from mem_gpt_cli.model.families import find_family
from mem_gpt_cli.model.replacements import replace, set_dropout
from mem_gpt_cli.model.source import ModelSource, Origin

if TYPE_CHECKING:
    from mem_gpt_cli.recipe.schema import Model

__all__ = ["ModelSource", "resolve"]

TINY = "memgpt-tiny"
SMOLLM2 = "smollm2-135m"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


def resolve(model: Model) -> ModelSource:
    """Find the model that a recipe names and apply the recipe's replacements to its config.

    Raises:
        UsageError: for a name or path that leads nowhere, a file that is no decoder's config, an unknown
            replacement key, or a value that no model can have.
        EnvironmentUnavailableError: for a hub model that cannot be had: offline, gated or not there.
    """
    found = _noted(find(model.name), model)
    if not model.config and model.dropout is None:
        return _checked(found)
    config = replace(found.config, model.config, found.where)
    if model.dropout is not None:
        config = set_dropout(config, model.dropout)
    return _checked(
        with_changes(found, config=config, weights_are_local=found.weights_are_local and _fits(found, config))
    )


def _noted(found: ModelSource, model: Model) -> ModelSource:
    """Say so where a user's own config is for a narrower width than the recipe's, fp32 by default."""
    written = str(found.config.get("dtype") or found.config.get("torch_dtype"))
    narrow = {"bfloat16": "bf16", "float16": "fp16"}.get(written)
    if found.origin not in ("path", "hub") or narrow is None or model.dtype != "fp32":
        return found
    note = f"{found.where} is for weights in {narrow}; the figures are for fp32: --dtype {narrow} for its own"
    return with_changes(found, notes=(*found.notes, note))


def find(name: str) -> ModelSource:
    """The model of that name as it stands, without replacements; raises as ``resolve`` does."""
    path = _existing(name)
    if path is not None and _is_a_model(path, name):
        return _from_path(name, path)
    if name.casefold() == TINY:
        return _embedded()
    entry = find_entry(name)
    if entry is not None:
        return _from_catalogue(entry)
    if path is not None:
        return _from_path(name, path)
    if _looks_like_a_path(name):
        raise UsageError(
            f"model.name: {name} does not exist; give a config.json, a model folder or a GGUF file"
        )
    if _HUB_ID.fullmatch(name):
        return _from_hub(name)
    raise unknown_model(name, more=(TINY,))


def _checked(source: ModelSource) -> ModelSource:
    """Refuse values that no model can have now, not in the middle of a run."""
    if find_family(str(source.config.get("model_type"))):
        source.architecture  # noqa: B018  (raises)
    return source


def _fits(found: ModelSource, config: dict[str, Any]) -> bool:
    """Whether the stored weights still fit: no tensor changed its shape."""
    try:
        return with_changes(found, config=config).architecture.tensors == found.architecture.tensors
    except MemgptError:
        return False  # without numbers nothing can be said of the shapes


def _existing(name: str) -> Path | None:
    """The path of that name; ``None`` where there is none, or the name cannot be one (too long)."""
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _is_a_model(path: Path, name: str) -> bool:
    """A path that holds a model; a bare word needs more than a folder that happens to be called so."""
    if path.is_file():
        return True
    bare = "/" not in name
    return path.is_dir() and (not bare or (path / "config.json").is_file() or any(path.glob("*.gguf")))


def _looks_like_a_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or name.endswith((".json", ".gguf", ".safetensors"))
    )


def _from_path(name: str, path: Path) -> ModelSource:
    if path.suffix == ".gguf":
        return _from_gguf(name, path)
    if path.suffix == ".safetensors":
        path = path.parent
    if path.is_dir():
        return _from_folder(name, path, "path")
    return _from_config(name, path, "path")


def _from_folder(name: str, folder: Path, origin: Origin) -> ModelSource:
    config = folder / "config.json"
    if config.is_file():
        return _from_config(name, config, origin)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return _from_gguf(name, ggufs[0])
    if ggufs:
        names = ", ".join(path.name for path in ggufs)
        raise UsageError(f"model.name: {folder} holds several GGUF files ({names}); name one of them")
    raise UsageError(
        f"model.name: {folder} holds neither a config.json nor a GGUF file; name a model's folder"
    )


def _from_config(name: str, path: Path, origin: Origin, source: str | None = None) -> ModelSource:
    config, notes = decoder_part(read_config(path), str(path))
    return ModelSource(
        name=name,
        origin=origin,
        config=config,
        where=str(path),
        folder=path.parent if path.name == "config.json" else None,
        weights_are_local=path.name == "config.json" and not notes and _has_weights(path.parent),
        source=source or str(path),
        notes=notes,
    )


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES)


def _from_gguf(name: str, path: Path) -> ModelSource:
    from mem_gpt_cli.model.gguf_file import read_gguf_config

    return ModelSource(
        name=name,
        origin="gguf",
        config=read_gguf_config(path),
        where=str(path),
        folder=path.parent,
        gguf_file=path,
        weights_are_local=True,
        source=str(path),
    )


def _embedded() -> ModelSource:
    from mem_gpt_cli.model import tiny

    return with_changes(_from_folder(TINY, tiny.folder(), "embedded"), source=TINY)


def _from_catalogue(entry: Entry) -> ModelSource:
    gguf_file = None
    if entry.name == SMOLLM2:
        from mem_gpt_cli.model import smollm2

        gguf_file = smollm2.installed_file()
    return ModelSource(
        name=entry.name,
        origin="catalogue",
        config=dict(entry.config),
        where=entry.name,
        folder=gguf_file.parent if gguf_file else None,
        gguf_file=gguf_file,
        weights_are_local=gguf_file is not None,
        source=entry.source,
    )


def _from_hub(repository: str) -> ModelSource:
    from mem_gpt_cli.model.hub import config_of

    path = config_of(repository)
    return _from_config(
        repository, path, "hub", source=f"https://huggingface.co/{repository}/blob/main/config.json"
    )
